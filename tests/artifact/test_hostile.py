"""Artifacts made to harm: refused before anything in them is run, followed or made room for."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
import torch

from fastrec import ArtifactError, CorruptArtifactError, UnsafeArtifactError, load
from fastrec.artifact import check

from .conftest import Saved, resealed


class _Run:
    """Runs a command as it is unpickled."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


class _Evaluated:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').system('true')",)


def _broken_zip(data: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3")
    found = bytearray(held.getvalue())
    found[found.index(data[:8])] ^= 1
    return bytes(found)


def _numpy(command: str) -> bytes:
    held = io.BytesIO()
    np.save(held, np.array([_Run(command)], dtype=object), allow_pickle=True)
    return held.getvalue()


def _joblib(command: str) -> bytes:
    held = io.BytesIO()
    joblib.dump(_Run(command), held)
    return held.getvalue()


def _exported() -> bytes:
    held = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), held)
    return held.getvalue()


KINDS: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "system": ("weights.pkl", lambda command: pickle.dumps(_Run(command))),
    "eval": ("weights.pt", lambda _: pickle.dumps(_Evaluated())),
    "pip": ("weights.pickle", lambda _: b"cpip\nmain\n(S'x'\ntR."),
    "protocol 0": ("pytorch_model.bin", lambda command: pickle.dumps(_Run(command), protocol=0)),
    "zip": ("model.pth", lambda command: _broken_zip(pickle.dumps(_Run(command)))),
    "pt2": ("model.pt2", lambda _: _exported()),
    "npy": ("table.npy", _numpy),
    "joblib": ("model.joblib", _joblib),
    "yaml": ("config.yaml", lambda command: f"!!python/object/apply:os.system ['{command}']".encode()),
}


@pytest.fixture
def watched() -> Any:
    """Names of events that none of our own code may cause, as they happen while the switch is on."""
    return _Watch()


class _Watch:
    """Audit hooks stay for good, so there is one, which listens while it is told to."""

    seen: list[str] | None = None
    hooked = False

    def __enter__(self) -> list[str]:
        if not _Watch.hooked:
            sys.addaudithook(_Watch.hear)
            _Watch.hooked = True
        _Watch.seen = []
        return _Watch.seen

    def __exit__(self, *_: object) -> None:
        _Watch.seen = None

    @staticmethod
    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if _Watch.seen is not None and event in (
            "os.system",
            "subprocess.Popen",
            "pickle.find_class",
            "os.exec",
        ):
            _Watch.seen.append(event)


@pytest.mark.parametrize("named", [True, False], ids=["named", "beside"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_as_it_is_read_is_never_read(
    kind: str, named: bool, saved: Saved, tmp_path: Path, watched: Any
) -> None:
    folder, sentinel = saved.copy(tmp_path), tmp_path / "sentinel"
    name, make = KINDS[kind]
    data = make(f"touch {sentinel}")
    (folder / name).write_bytes(data)
    if named:
        resealed(folder, lambda manifest: manifest["files"].update({name: {"bytes": 0, "sha256": ""}}))
        resealed(folder)
    with watched as seen:
        for reader in (load, check):
            with pytest.raises(UnsafeArtifactError, match=name):
                reader(folder)
        with pytest.raises(UnsafeArtifactError, match="is a file"):
            load(folder / name)
    assert seen == [] and not sentinel.exists()


@pytest.mark.parametrize(
    "name", ["report.json", "graphs/plain.json", "tensors.safetensors", "graphs/session-0.onnx"]
)
def test_nor_under_a_name_of_ours(name: str, saved: Saved, tmp_path: Path, watched: Any) -> None:
    folder, sentinel = saved.copy(tmp_path), tmp_path / "sentinel"
    resealed(folder, **{name: pickle.dumps(_Run(f"touch {sentinel}"))})
    with watched as seen, pytest.raises((UnsafeArtifactError, ValueError)):
        load(folder)
    assert seen == [] and not sentinel.exists()


def test_a_manifest_cannot_name_code(saved: Saved, tmp_path: Path) -> None:
    for change in (
        lambda manifest: manifest.update({"_target_": "os.system"}),
        lambda manifest: manifest["sessions"][0].update({"_target_": "os.system"}),
        lambda manifest: manifest["sessions"][0].update({"backend": "os.system"}),
        lambda manifest: manifest["sessions"][0]["settings"].update({"path": "/bin/sh"}),
        lambda manifest: manifest["sessions"][0]["model"].update({"file": "../../etc/passwd"}),
    ):
        folder = saved.copy(tmp_path / str(id(change)))
        resealed(folder, change)
        with pytest.raises(UnsafeArtifactError):
            load(folder)


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "aten.from_file.default", "aten.add_.Tensor", "aten.rand.default", "python.eval", "prims.add.default",
        "aten.__class__.default", "fastrec.nothing.default", "aten.embedding.default.__call__", 7, None,
    ],
)  # fmt: skip
def test_a_graph_calls_operators_that_compute_and_nothing_else(
    target: Any, saved: Saved, tmp_path: Path
) -> None:
    folder = saved.copy(tmp_path)
    path = folder / "graphs" / "plain.json"
    data = json.loads(path.read_bytes())
    call = next(node for node in data["graph"]["nodes"] if node["op"] == "call_function")
    call["target"] = target
    resealed(folder, **{"graphs/plain.json": json.dumps(data).encode()})
    for reader in (load, check):
        with pytest.raises(UnsafeArtifactError):
            reader(folder)


def test_a_graph_reads_no_memory_but_its_tensors(saved: Saved, tmp_path: Path) -> None:
    for spoil in (
        {"offset": 2**40},
        {"offset": -8},
        {"shape": [10**9, 8]},
        {"stride": [2**40, 1]},
        {"dtype": "object"},
        {"entry": "/etc/passwd"},
        {"shape": "all"},
    ):
        folder = saved.copy(tmp_path / str(len(list(tmp_path.iterdir()))))
        data = json.loads((folder / "graphs" / "plain.json").read_bytes())
        place = next(place for place in data["graph"]["constants"].values() if len(place["shape"]) == 2)
        place.update(spoil)
        resealed(folder, **{"graphs/plain.json": json.dumps(data).encode()})
        with pytest.raises(UnsafeArtifactError):
            check(folder)


LINKS: dict[str, Callable[[Path, Path], object]] = {
    "symlink": lambda file, outside: (file.unlink(), file.symlink_to(outside)),
    "hardlink": lambda file, outside: (file.unlink(), os.link(outside, file)),
    "pipe": lambda file, _: (file.unlink(), os.mkfifo(file)),
    "device": lambda file, _: (file.unlink(), file.symlink_to("/dev/zero")),
    "folder": lambda file, _: (file.unlink(), file.mkdir()),
    "other case": lambda file, _: file.rename(file.with_name(file.name.upper())),
}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("name", ["tensors.safetensors", "graphs/plain.json", "manifest.json"])
def test_links_and_devices_are_not_followed(kind: str, name: str, saved: Saved, tmp_path: Path) -> None:
    folder = saved.copy(tmp_path)
    outside = tmp_path / "outside"
    outside.write_bytes((folder / name).read_bytes())
    LINKS[kind](folder / name, outside)
    caught: list[BaseException] = []

    def attempt() -> None:
        try:
            load(folder)
        except ArtifactError as error:
            caught.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and caught, "it waits, or was loaded"


def test_a_linked_folder_of_graphs_is_not_followed(saved: Saved, tmp_path: Path) -> None:
    folder = saved.copy(tmp_path)
    (folder / "graphs").rename(tmp_path / "elsewhere")
    (folder / "graphs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeArtifactError, match="graphs"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["../outside.json", "/etc/passwd", "graphs/../../x.json", "a\0b.json", "graphs//x.json", ".hidden.json", "x.so"]
)  # fmt: skip
def test_names_that_leave_the_folder(name: str, saved: Saved, tmp_path: Path) -> None:
    folder = saved.copy(tmp_path)
    (tmp_path / "outside.json").write_text("{}")
    resealed(folder, lambda manifest: manifest["files"].update({name: {"bytes": 2, "sha256": "0" * 64}}))
    for reader in (load, check):
        with pytest.raises(UnsafeArtifactError, match="no artifact holds"):
            reader(folder)


def _model(*nodes: Any, initializers: Any = (), **parts: Any) -> bytes:
    graph = onnx.helper.make_graph(
        nodes, "g", [], [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)], initializers
    )
    return onnx.helper.make_model(graph, **parts).SerializeToString()


def _outside(location: str, length: str) -> bytes:
    held = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("length", length)):
        held.external_data.add(key=key, value=value)
    return _model(onnx.helper.make_node("Identity", ["w"], ["y"]), initializers=[held])


@functools.cache
def _bombs() -> dict[str, bytes]:
    helper = onnx.helper
    shape = onnx.numpy_helper.from_array(np.array([2**40]), "s")
    many = [onnx.TensorProto(name=str(i), data_type=1, dims=[0]) for i in range(150_000)]
    return {
        "a large answer": _model(helper.make_node("ConstantOfShape", ["s"], ["y"]), initializers=[shape]),
        "many constants": _model(initializers=many),
        "a path outside": _outside("../../etc/passwd", "8"),
        "a length outside": _outside("outside", str(2**50)),
        "a foreign operator": _model(
            helper.make_node("PyOp", [], ["y"], domain="ai.onnx.contrib"),
            opset_imports=[helper.make_opsetid("ai.onnx.contrib", 1)],
        ),
        "torch's operators": _model(
            helper.make_node("ATen", [], ["y"], domain="org.pytorch.aten"),
            opset_imports=[helper.make_opsetid("org.pytorch.aten", 1), helper.make_opsetid("", 18)],
        ),
        "not a model": b"\xff" * 100,
    }


@pytest.mark.parametrize("kind", list(_bombs()))
def test_models_that_no_session_is_made_of(kind: str, saved: Saved, tmp_path: Path) -> None:
    folder = saved.copy(tmp_path)
    resealed(folder, **{"graphs/session-0.onnx": _bombs()[kind]})
    for reader in (load, check):
        with pytest.raises(UnsafeArtifactError):
            reader(folder)


def test_bombs_take_no_room(saved: Saved, tmp_path: Path) -> None:
    header = saved.copy(tmp_path / "header")
    resealed(header, **{"tensors.safetensors": struct.pack("<Q", 2**60) + b"{}" * 50})
    deep = saved.copy(tmp_path / "deep")
    (deep / "manifest.json").write_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    nested = saved.copy(tmp_path / "nested")
    resealed(nested, **{"graphs/plain.json": b"[" * 100_000 + b"]" * 100_000})
    long = saved.copy(tmp_path / "long")
    with open(long / "manifest.json", "r+b") as file:
        file.truncate(2**33)
    packed = saved.copy(tmp_path / "packed")
    with zipfile.ZipFile(packed / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(2**20))
    made = saved.copy(tmp_path / "made")
    data = json.loads((made / "graphs" / "plain.json").read_bytes())
    call = next(node for node in data["graph"]["nodes"] if node["op"] == "call_function")
    call.update({"target": "aten.zeros.default", "args": [[2**20, 2**20]], "kwargs": {}})
    resealed(made, **{"graphs/plain.json": json.dumps(data).encode()})
    code = """
        import resource, sys, torch
        from fastrec import load, UnsafeArtifactError
        from fastrec.artifact import check
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        for folder in sys.argv[1:]:
            for reader in (check, load):
                try:
                    reader(folder)
                except UnsafeArtifactError:
                    continue
                sys.exit(f"{folder} was loaded")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        sys.exit(0 if grown < 64 << 10 else f"{grown} KiB")
    """
    folders = [str(folder) for folder in (header, deep, nested, long, packed, made)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *folders], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_lone_file_or_nothing(tmp_path: Path, saved: Saved) -> None:
    from fastrec import ArtifactNotFoundError

    with pytest.raises(ArtifactNotFoundError, match="no artifact at"):
        load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no artifact of fastrec"):
        load(tmp_path / "empty")
    with pytest.raises(CorruptArtifactError):
        folder = saved.copy(tmp_path)
        (folder / "report.json").unlink()
        load(folder)
