"""Frozen dataclasses <-> plain data (dicts, lists, strings, numbers), as JSON holds it.

Written data is inert: no class names, no code. What is read is checked against the types of the dataclass, and the
error names the place, as in `report.sizes[2].before.p50`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from .errors import InputError

__all__ = ["dumps", "from_plain", "loads", "to_plain"]

T = TypeVar("T")


def to_plain(value: Any, where: str) -> Any:
    """Turn a dataclass, and all it holds, into data that JSON can hold.

    Raises `InputError`, naming the place below `where`, at a value JSON has no form for (NaN and the infinities
    among them).

    Example:
        >>> to_plain({"sizes": (1, 32)}, "report")
        {'sizes': [1, 32]}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}: only finite numbers can be written")
        return float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InputError(f"{where} has keys that are not strings: {list(value)[:3]}")
        return {key: to_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise InputError(f"{where} is a {type(value).__name__}: only settings that JSON can hold can be written")


def from_plain(kind: type[T], data: Any, where: str) -> T:
    """Turn plain data back into the dataclass `kind`, checking every name and type.

    Fields with defaults may be missing; unknown names may not be present. Raises `InputError`, naming the place.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     rows: int
        >>> from_plain(Size, {"rows": 32}, "size")
        Size(rows=32)
    """
    _expect(isinstance(data, dict), where, f"the fields of {kind.__name__}", data)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]  # `kind` is a dataclass, which a type cannot say
    if unknown := sorted(set(data) - set(fields)):
        raise InputError(f"{where} has unknown names {unknown}; known are {sorted(fields)}")
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(data)):
        raise InputError(f"{where} lacks {missing}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _read(hints[name], item, f"{where}.{name}") for name, item in data.items()})


def dumps(data: Any) -> str:
    """Strict, readable JSON."""
    return json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False)


def loads(text: str, where: str, schema: int) -> dict[str, Any]:
    """The object in a strict JSON text of the given schema, without its `schema` entry.

    Raises `InputError` when the text is not JSON, holds NaN or is of another schema.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not strict JSON: {error}") from error
    _expect(isinstance(data, dict), where, "an object", data)
    found = data.pop("schema", None)
    if found != schema or isinstance(found, bool):
        raise InputError(
            f"{where} has schema {found!r}, this version of fastrec reads schema {schema}: use the version that wrote it"
        )
    return typing.cast("dict[str, Any]", data)


def _read(kind: Any, data: Any, where: str) -> Any:
    """Plain data as the annotated type `kind`."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return data
    if origin in (Union, types.UnionType):
        return _read_union(args, data, where)
    if origin is Literal:
        _expect(data in args, where, f"one of {list(args)}", data)
        return data
    if origin in (tuple, list):
        return _read_sequence(origin, args, data, where)
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(data, dict), where, "an object", data)
        return {key: _read(args[1], item, f"{where}.{key}") for key, item in data.items()}
    if dataclasses.is_dataclass(kind):
        return from_plain(typing.cast("type", kind), data, where)
    if kind is float:
        _expect(isinstance(data, int | float) and not isinstance(data, bool), where, "a number", data)
        return float(data)
    if kind is type(None):
        _expect(data is None, where, "null", data)
        return None
    _expect(type(data) is kind, where, f"a value of type {getattr(kind, '__name__', kind)}", data)
    return data


def _read_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    refusals = []
    for kind in kinds:
        try:
            return _read(kind, data, where)
        except InputError as error:
            refusals.append(error)
    if data is not None and len(refusals) == 2 and type(None) in kinds:
        raise refusals[kinds.index(type(None)) - 1]  # the refusal of X in X | None says more than of both
    raise InputError(f"{where} is {_short(data)}: " + "; ".join(map(str, refusals)))


def _read_sequence(origin: Any, args: tuple[Any, ...], data: Any, where: str) -> Any:
    _expect(isinstance(data, list), where, "a list", data)
    if origin is list or args[-1] is Ellipsis:
        kinds: tuple[Any, ...] = args[:1] * len(data)
    else:
        kinds = args
        _expect(len(data) == len(kinds), where, f"a list of {len(kinds)}", data)
    return origin(
        _read(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, data, strict=True))
    )


def _expect(holds: bool, where: str, expected: str, got: Any) -> None:
    if not holds:
        raise InputError(f"{where}: expected {expected}, got {_short(got)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
