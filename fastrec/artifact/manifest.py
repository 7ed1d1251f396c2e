"""The manifest: what an artifact holds and is, with the digest of every file and of itself.

Its bytes are its one canonical form, so that whatever is changed in them is seen. `created` alone is left out of what
makes two artifacts the same; it has a digest of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import CorruptArtifactError, InputError, UnsafeArtifactError
from ..plain import from_plain, to_plain
from ..report import Status

__all__ = [
    "SCHEMA",
    "Answers",
    "Created",
    "Example",
    "Fallback",
    "File",
    "Input",
    "Manifest",
    "Model",
    "Modules",
    "Session",
    "manifest_bytes",
    "read_manifest",
]  # fmt: skip

SCHEMA = 1
LIMIT = 16 << 20
_DEPTH = 64
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True)
class File:
    """A file of the folder: SHA-256 of its bytes, and how many there are."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Created:
    """When the artifact was written (UTC), and the SHA-256 of that."""

    at: str
    sha256: str


@dataclass(frozen=True)
class Input:
    """One flat input, in the caller's words: sizes of None are free, ids lie from `low` to below `high` where all share a range."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    request: bool | tuple[int, ...] = False
    low: int | None = None
    high: int | None = None


@dataclass(frozen=True)
class Model:
    """A session's ONNX model: its file, input names in call order, and where each constant from outside lies."""

    file: str
    inputs: tuple[str, ...]
    constants: Mapping[str, Any]
    copied_bytes: int
    front: str | None
    alike: bool


@dataclass(frozen=True)
class Session:
    """A session that serves: backend and settings, the graph it is of (None: the model's own modules), and its ONNX model."""

    name: str
    backend: str
    settings: Mapping[str, Any]
    graph: str | None
    whole: bool
    model: Model | None = None


@dataclass(frozen=True)
class Fallback:
    """Who serves what the sessions do not: a graph of the original, the plain form of what serves, or the caller's model."""

    kind: Literal["graph", "plain", "model"]
    graph: str | None
    why: str = ""


@dataclass(frozen=True)
class Modules:
    """The caller's model as it must be given back: names, shapes and one digest of all its tensors."""

    type: str
    tensors: Mapping[str, Any]
    sha256: str
    entry: str
    edited: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """What one session answered to the example batch: where the tensors lie, and the SHA-256 of each."""

    tensors: tuple[Mapping[str, Any], ...]
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A batch that was drawn, not the caller's: `rows` rows, where its tensors lie, and who answered what."""

    rows: int
    tensors: tuple[Mapping[str, Any], ...]
    answers: Mapping[str, Answers]


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says."""

    fastrec: str
    status: Status
    headline: str
    exact: bool
    inputs: tuple[Input, ...]
    layout: Mapping[str, Any]
    check_request: bool
    guard: Mapping[str, Any] | None
    computed: str | None
    apart: bool
    plan: tuple[tuple[int, str], ...] | None
    sessions: tuple[Session, ...]
    program: str | None
    fallback: Fallback
    modules: Modules | None
    example: Example | None
    recipe: Mapping[str, Any]
    machine: Mapping[str, Any]
    threads: int
    files: Mapping[str, File]


def manifest_bytes(manifest: Manifest, at: str) -> bytes:
    """The canonical bytes of a manifest, written at the time `at`."""
    data = {"schema": SCHEMA, **to_plain(manifest, "manifest")}
    data["sha256"] = _digest(data)
    data["created"] = {"at": at, "sha256": hashlib.sha256(at.encode()).hexdigest()}
    return _canonical(data)


def read_manifest(data: bytes, path: str) -> tuple[Manifest, str, str]:
    """The manifest of these bytes, its digest, and when it was written.

    Raises `CorruptArtifactError` where the bytes are not as they were written, `UnsafeArtifactError` at what no manifest holds.
    """
    if len(data) > LIMIT:
        raise UnsafeArtifactError(f"{path} has {len(data):,} bytes, {LIMIT:,} are the most", path=path)
    _check_depth(data, path)
    try:
        found = json.loads(data, parse_constant=_refused)
        if not isinstance(found, dict):
            raise ValueError("not an object")
        canonical = _canonical(found)
    except (ValueError, RecursionError) as error:
        raise CorruptArtifactError(
            f"{path}, {len(data):,} bytes, is not as it was written: {error}", path=path
        ) from error
    created, digest = found.pop("created", None), found.pop("sha256", None)
    at = created.get("at") if isinstance(created, dict) else None
    sealed = isinstance(at, str) and created == {"at": at, "sha256": hashlib.sha256(at.encode()).hexdigest()}
    if canonical != data or digest != _digest(found) or not sealed:
        raise CorruptArtifactError(
            f"{path}, {len(data):,} bytes, is not as it was written: its digest is another", path=path
        )
    schema = found.pop("schema", None)
    if schema != SCHEMA or isinstance(schema, bool):
        raise InputError(
            f"{path} has schema {schema!r:.40}, this version of fastrec reads schema {SCHEMA}: use the version that wrote it"
        )
    try:
        return from_plain(Manifest, found, "manifest"), str(digest), str(at)
    except InputError as error:
        raise UnsafeArtifactError(f"{path}: {error}", path=path) from error


def _canonical(data: Any) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=True).encode() + b"\n"


def _digest(data: Any) -> str:
    return hashlib.sha256(_canonical(data)).hexdigest()


def _check_depth(data: bytes, path: str) -> None:
    """Raises `UnsafeArtifactError` for JSON that is nested deeper than any manifest."""
    depth = 0
    for bracket in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > _DEPTH:
            raise UnsafeArtifactError(f"{path} is nested more than {_DEPTH} deep", path=path)


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
