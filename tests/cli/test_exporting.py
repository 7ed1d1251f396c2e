"""`fastrec export-onnx` and `export-triton`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from fastrec.exports import onnx_file

from .conftest import Result, Saved

Run = Callable[..., Result]


def test_a_folder_becomes_a_file(fastrec: Run, saved: Saved, tmp_path: Path) -> None:
    done = fastrec("export-onnx", saved.folder, tmp_path / "ranker.onnx", "--json")
    assert done.code == 0 and done.json["files"] == [str(tmp_path / "ranker.onnx")]
    assert done.json["inputs"][0] == {"name": "user", "shape": [1]} and not done.json["rows_apart"]
    onnx.checker.check_model(str(tmp_path / "ranker.onnx"))
    assert fastrec("export-onnx", saved.folder, tmp_path / "ranker.bin").code == 2


def test_a_folder_becomes_a_repository(
    fastrec: Run, saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "check", lambda *_: 0.0)
    done = fastrec("export-triton", saved.folder, tmp_path, "--name", "ranker", "--here")
    assert done.code == 0 and "takes user: 1\n" in done.out
    assert (tmp_path / "ranker" / "1" / "model.onnx").is_file()
    assert (tmp_path / "ranker" / "config.pbtxt").read_text().startswith('name: "ranker"\n')
