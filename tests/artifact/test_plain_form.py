"""An artifact without its sessions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx

from fastrec import CorruptArtifactError, InputError, load
from fastrec.artifact import path_of, read_plain

from .conftest import Saved, batch


def test_it_is_the_graph_of_what_serves_and_what_stands_in_front_of_it(saved: Saved) -> None:
    form, again = read_plain(saved.folder), load(saved.folder)
    gm, program = form.program.model, again.program
    assert isinstance(gm, fx.GraphModule) and program is not None
    flat = form.once.reduced(form.layout.flatten((), batch(7)))
    assert form.guard is not None
    form.guard(flat)
    assert torch.equal(gm(*flat)[0], program.model(*flat)[0])
    assert not form.whole and form.apart == again.separates
    example = form.program.batch
    assert [feature.dtype for feature in form.program.layout.features] == [tensor.dtype for tensor in example]
    assert torch.equal(gm(*example)[0], program.model(*example)[0])
    names = {path_of(gm, str(node.target)) for node in gm.graph.nodes if node.op == "get_attr"}
    assert names and not any(name.startswith("constant_") for name in names)


def test_digests_are_compared_unless_it_is_said_otherwise(saved: Saved, tmp_path: Path) -> None:
    folder = saved.copy(tmp_path)
    with open(folder / "report.json", "r+b") as file:
        file.write(b" ")
    with pytest.raises(CorruptArtifactError, match=r"report\.json"):
        read_plain(folder)
    assert isinstance(read_plain(folder, verify=False).program.model, fx.GraphModule)


def test_without_a_graph_it_is_refused(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from fastrec.artifact import plain_form

    parts = plain_form.Parts

    def without(files: object) -> object:
        files.manifest = dataclasses.replace(  # type: ignore[attr-defined]
            files.manifest,  # type: ignore[attr-defined]
            program=None,
            fallback=dataclasses.replace(
                files.manifest.fallback, kind="model", graph=None, why="it branches"
            ),  # type: ignore[attr-defined]
        )
        return parts(files)  # type: ignore[arg-type]

    monkeypatch.setattr(plain_form, "Parts", without)
    with pytest.raises(InputError, match="no graph of what serves"):
        read_plain(saved.folder)
