"""Transforms as safetensors files: arrays, and the settings in the metadata; written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

__all__ = ["read", "write"]

_SCHEMA = "1"


def write(
    path: str | os.PathLike[str], kind: str, settings: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Writes a file beside `path` and moves it there, so that a reader finds the old one or the new."""
    from safetensors.numpy import save

    whole = Path(path)
    metadata = {"fastrec": kind, "schema": _SCHEMA, "settings": json.dumps(dict(settings), sort_keys=True)}
    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata=metadata)
    handle, temporary = tempfile.mkstemp(dir=whole.parent, prefix=f".{whole.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, whole)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The settings and arrays that `write` wrote. Raises `InputError` for a file that is damaged or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file, or a damaged one: {error}") from error
    found = metadata.get("fastrec"), metadata.get("schema")
    if found != (kind, _SCHEMA):
        raise InputError(
            f"{path} holds {found[0]!r:.80} of schema {found[1]!r:.20}, expected {kind!r} of {_SCHEMA!r}"
        )
    try:
        settings = json.loads(metadata.get("settings", ""))
    except ValueError as error:
        raise InputError(f"{path} has settings that are no JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} has settings that are a {type(settings).__name__}, expected a mapping")
    return settings, arrays
