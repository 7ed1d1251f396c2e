"""The parts of an artifact, read from its open files: graphs, tensors and ONNX models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import fx

from ..backends import Translated
from ..errors import UnsafeArtifactError
from .folder import Folder
from .graphs import graph_of
from .manifest import Session as Entry
from .onnx_files import ONNX_LIMIT, screened
from .tensors import Stored

__all__ = ["TEXT", "Parts"]

TEXT = 256 << 20
"""Bytes that a text of an artifact has at most."""
_TENSORS = "tensors.safetensors"


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
