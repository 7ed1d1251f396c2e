"""Modules called what no identifier is: saved and loaded like any other; no name of an artifact reaches into a graph."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastrec import Fuse, InputError, UnsafeArtifactError, compress, load, pipeline
from fastrec.artifact import check, write
from fastrec.backends import Backend, Eager, OnnxRuntime

from .conftest import Saved, resealed

KEYS = (
    "user-id",
    "user id",
    "user:id",
    "user/id",
    "naïve",
    "用户",
    "a<b>",
    "a|b",
    "a,b",
    "__x",
    "weight",
    "7",
)


class Named(nn.Module):
    """A table for each feature, under the feature's own name."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({key: nn.Embedding(2100 + i, 8) for i, key in enumerate(KEYS)})
        self.top = nn.Linear(8 * len(KEYS), 1)

    def forward(self, ids: dict[str, Tensor]) -> Tensor:
        return self.top(torch.cat([table(ids[key]) for key, table in self.tables.items()], 1))


@pytest.mark.parametrize("backend", [Eager(), OnnxRuntime()], ids=lambda one: one.name)
def test_any_name_of_a_module(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "share", lambda *_: 0.05)
    monkeypatch.setattr(pipeline, "worth_it", lambda result: True)
    given = {key: torch.randint(2100, (16,)) for key in KEYS}
    fast = compress(Named().eval(), given, recipe=Fuse(), backends=[backend], batch_sizes=(16,), seconds=1, progress=False)  # fmt: skip
    fast.save(tmp_path / "one")
    again = load(tmp_path / "one")
    assert fast.sources and again.notes == ()
    assert torch.equal(again(given), fast(given))
    held = json.loads((tmp_path / "one" / "graphs" / "original.json").read_bytes())["graph"]["constants"]
    assert all(re.fullmatch(r"constant_\d+", name) for name in held)
    paths = {place["path"] for place in held.values()}
    assert {f"model.tables.{key}.weight" for key in KEYS} <= paths
    again.save(tmp_path / "two")
    for file in (tmp_path / "one").rglob("*"):
        if file.is_file() and file.name != "manifest.json":
            assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize(
    "name", ["forward", "_parameters", "__class__", "constant_0.weight", 'a"); print("', "constant_01", ""]
)
def test_no_constant_has_another_name(name: str, saved: Saved, tmp_path: Path) -> None:
    folder = saved.copy(tmp_path)
    data = json.loads((folder / "graphs" / "plain.json").read_bytes())
    data["graph"]["constants"][name] = data["graph"]["constants"].pop("constant_0")
    for node in data["graph"]["nodes"]:
        if node.get("target") == "constant_0":
            node["target"] = name
    resealed(folder, **{"graphs/plain.json": json.dumps(data).encode()})
    with pytest.raises(UnsafeArtifactError, match="the name of a constant"):
        check(folder)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("plain", b'"constant_0"', b'"forward"'), ("original", b'"placeholder"', b'"call_module"'), ("plain", b'"role"', b'"roll"')],
)  # fmt: skip
def test_what_could_not_be_loaded_is_not_saved(
    name: str, old: bytes, new: bytes, saved: Saved, tmp_path: Path
) -> None:
    folder = saved.copy(tmp_path)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    file = f"graphs/{name}.json"
    spoilt = replace(saved.made, texts=saved.made.texts | {file: saved.made.texts[file].replace(old, new)})
    with pytest.raises(InputError, match=r"cannot be saved.*artifact/graphs/") as caught:
        write(spoilt, folder)
    assert ".fastrec-" not in str(caught.value)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert [one.name for one in tmp_path.iterdir()] == ["artifact"]
