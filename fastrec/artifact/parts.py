"""The parts of an artifact, read from its open files: graphs, tensors and ONNX models, and whether all of them can be."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from ..backends import Translated
from ..errors import UnsafeArtifactError
from ..request import Once
from .folder import Folder, opened
from .graphs import graph_of
from .guarding import guard_of
from .layouts import Classes, layout_of
from .manifest import Manifest
from .manifest import Session as Entry
from .onnx_files import ONNX_LIMIT, screened
from .tensors import Stored

__all__ = ["TEXT", "Parts", "check", "try_reading"]

TEXT = 256 << 20
"""Bytes that a text of an artifact has at most."""
_TENSORS = "tensors.safetensors"


def check(folder: str | os.PathLike[str]) -> Manifest:
    """Whether an artifact is whole and holds nothing that no artifact holds; gives its manifest. Nothing is run.

    Raises `ArtifactNotFoundError`, `CorruptArtifactError`, `UnsafeArtifactError`. Cost: a pass over its bytes.
    """
    with opened(folder) as files:
        _read_all(Parts(files))
        return files.manifest


def try_reading(folder: str | os.PathLike[str], types: Sequence[type]) -> None:
    """Reads all that loading reads but the bytes of tensors, with the classes that loading is given.

    Raises what loading would. Cost: that of reading the graphs.
    """
    with opened(folder, verify=False) as files:
        parts, manifest, where = Parts(files), files.manifest, files.where("manifest.json")
        _read_all(parts)
        classes = Classes(types)
        layout = layout_of(dict(manifest.layout), classes, where)
        for name, (_, data) in parts.graphs.items():
            if data is not None:
                layout_of(data, classes, files.where(f"graphs/{name}.json"))
        if manifest.guard is not None:
            computed = None if manifest.computed is None else parts.graph(manifest.computed)[0]
            features = Once(layout.features, check=manifest.check_request).candidates
            guard_of(dict(manifest.guard), features, computed, where)


def _read_all(parts: Parts) -> None:
    manifest = parts.files.manifest
    for name in manifest.files:
        if name.endswith(".json") and name.startswith("graphs/"):
            parts.graph(name.removeprefix("graphs/").removesuffix(".json"))
    for entry in manifest.sessions:
        parts.translated(entry)


class Parts:
    """The parts of an artifact, each read once."""

    def __init__(self, files: Folder) -> None:
        self.files = files
        self.stored = Stored(
            files.descriptor(_TENSORS), files.manifest.files[_TENSORS].bytes, files.where(_TENSORS)
        )
        self.graphs: dict[str, tuple[fx.GraphModule, Any]] = {}

    def graph(self, name: str) -> tuple[fx.GraphModule, Any]:
        """A graph by its name, and the layout written with it, as data."""
        if name not in self.graphs:
            file = f"graphs/{name}.json"
            data = self.json(file)
            if not isinstance(data, dict) or set(data) != {"graph", "layout", "entry"}:
                raise UnsafeArtifactError(
                    f"{self.files.where(file)} is no graph", path=self.files.where(file)
                )
            made = graph_of(data["graph"], self.stored, self.files.where(file))
            self.graphs[name] = made, data["layout"]
        return self.graphs[name]

    def json(self, file: str) -> Any:
        """The data of a JSON file."""
        where = self.files.where(file)
        try:
            return json.loads(self.files.read(file, TEXT), parse_constant=_refused)
        except (ValueError, RecursionError) as error:
            raise UnsafeArtifactError(f"{where} is not strict JSON: {error}", path=where) from error

    def translated(self, entry: Entry) -> Translated | None:
        """A session's ONNX model, nothing in it but what ours hold."""
        model = entry.model
        if model is None:
            return None
        where = self.files.where(model.file)
        constants = {
            name: self.stored.tensor(dict(place) if isinstance(place, Mapping) else place, f"{where}: {name}")
            for name, place in model.constants.items()
        }
        proto = screened(self.files.read(model.file, ONNX_LIMIT), constants, where)
        front = None if model.front is None else self.graph(model.front)[0]
        return Translated(proto, model.inputs, constants, model.copied_bytes, front, model.alike)


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
