"""Settings of techniques, in words, and what they take: an `InputError` names the technique, the setting, what it takes and what it got."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, get_args

from ..errors import InputError

__all__ = [
    "check_above",
    "check_choice",
    "check_known",
    "check_names",
    "check_ranges",
    "check_share",
    "check_switch",
    "check_whole",
    "named",
]


def check_whole(technique: Any, *settings: str, least: int = 0, most: int | None = None) -> None:
    """Whole numbers from `least`, up to `most` if there is such a limit."""
    takes = f"a whole number from {least}" if most is None else f"a whole number from {least} to {most}"
    for setting in settings:
        value = getattr(technique, setting)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value > most):
            raise _wrong(technique, setting, takes, value)


def check_share(technique: Any, *settings: str, zero: bool = False, one: bool = False) -> None:
    """Numbers between 0 and 1, themselves among them if `zero` and `one` say so."""
    takes = f"a share {'from' if zero else 'above'} 0 {'up to' if one else 'to below'} 1"
    for setting in settings:
        value = getattr(technique, setting)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1 or (value == 0 and not zero) or (value == 1 and not one):
            raise _wrong(technique, setting, takes, value)


def check_names(technique: Any, *settings: str) -> None:
    """Tuples of names, or None; an empty one only where it is the default, as elsewhere it would leave all."""
    defaults = {field.name: field.default for field in fields(technique)}
    for setting in settings:
        value = getattr(technique, setting)
        names = isinstance(value, tuple) and all(isinstance(name, str) and name for name in value)
        if value is not None and not names:
            raise _wrong(technique, setting, "a tuple of names", value)
        if value == () and defaults[setting] is None:
            raise _wrong(technique, setting, "a name at least, or None for all", value)


def check_above(technique: Any, *settings: str) -> None:
    """Finite numbers above 0."""
    for setting in settings:
        value = getattr(technique, setting)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):
            raise _wrong(technique, setting, "a finite number above 0", value)


def check_choice(technique: Any, setting: str, of: Any) -> None:
    """One of the words of a `Literal`."""
    if getattr(technique, setting) not in get_args(of):
        words = " or ".join(map(repr, get_args(of)))
        raise _wrong(technique, setting, words, getattr(technique, setting))


def check_known(technique: Any, setting: str, known: Collection[str], kind: str) -> None:
    """Names, or None, of what the model has of a kind."""
    for name in getattr(technique, setting) or ():
        if name not in known:
            raise InputError(
                f"{type(technique).__name__}({setting}=...) has {name!r:.80}, which is no {kind} of this model: it has "
                f"{', '.join(known) or 'none'}"
            )


def check_ranges(technique: Any, setting: str) -> None:
    """A mapping from names to (least, largest), finite and in order."""
    value = getattr(technique, setting)
    fits = isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(ends, (tuple, list))
        and len(ends) == 2
        and all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
        and -math.inf < ends[0] <= ends[1] < math.inf
        for name, ends in value.items()
    )
    if not fits:
        raise _wrong(
            technique, setting, "a mapping from inputs to (least, largest), as {'dense': (0.0, 1.0)}", value
        )


def check_switch(technique: Any, *settings: str) -> None:
    """True or False."""
    for setting in settings:
        value = getattr(technique, setting)
        if not isinstance(value, bool):
            raise _wrong(technique, setting, "True or False", value)


def _wrong(technique: Any, setting: str, takes: str, value: Any) -> InputError:
    return InputError(f"{type(technique).__name__}({setting}=...) takes {takes}, got {value!r:.80}")


def named(technique: Any) -> str:
    """A technique by its name, with the settings that are not its defaults; whatever it takes for small."""
    settings = [
        f"{field.name}={getattr(technique, field.name)}"
        for field in fields(technique)
        if field.name != "least_bytes" and getattr(technique, field.name) != field.default
    ]
    return f"{type(technique).__name__}({', '.join(settings)})"
