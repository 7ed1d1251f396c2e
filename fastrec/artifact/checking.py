"""Whether an artifact is whole, holds nothing that none holds, and could be loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .folder import opened
from .front import Front
from .layouts import Classes, layout_of
from .manifest import Manifest
from .parts import Parts

__all__ = ["check", "try_reading"]


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
        parts, classes = Parts(files), Classes(types)
        _read_all(parts)
        front = Front(parts, classes)
        for name, (_, data) in parts.graphs.items():
            if data is not None:
                layout_of(data, classes, files.where(f"graphs/{name}.json"))
        front.guard()


def _read_all(parts: Parts) -> None:
    manifest = parts.files.manifest
    for name in manifest.files:
        if name.endswith(".json") and name.startswith("graphs/"):
            parts.graph(name.removeprefix("graphs/").removesuffix(".json"))
    for entry in manifest.sessions:
        parts.translated(entry)
