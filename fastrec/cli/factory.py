"""The caller's own model: `pkg.module:build`, imported from the path and the current directory, as servers for the web do."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from ..errors import FastrecError, InputError
from ..pipeline import compress

__all__ = ["arguments_of", "here", "model_of"]

_SPEC = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_KNOWN = tuple(inspect.signature(compress).parameters)


@contextlib.contextmanager
def here() -> Iterator[None]:
    """With the current directory on the path of modules, in front."""
    place = os.getcwd()
    sys.path.insert(0, place)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(place)


def arguments_of(spec: str) -> dict[str, Any]:
    """The arguments of `compress` that the function gives: all of them by name, or `(model, batch)`.

    Raises `InputError` for a path that leads to no function, a function that fails, and what is neither.
    """
    given = _called(spec)
    if isinstance(given, tuple) and len(given) == 2:
        return {"model": given[0], "batch": given[1]}
    if not isinstance(given, dict):
        raise InputError(
            f"{spec} gives (model, batch), or a dict of arguments of compress, got a {type(given).__name__}"
        )
    if strange := sorted(map(str, set(given) - set(_KNOWN))):
        raise InputError(
            f"{spec} gives {', '.join(strange)}, which compress does not take: it takes {', '.join(_KNOWN)}"
        )
    if missing := {"model", "batch"} - set(given):
        raise InputError(f"{spec} gives no {' and no '.join(sorted(missing))}")
    return dict(given)


def model_of(spec: str) -> Any:
    """The model that the function gives, alone or with the rest."""
    given = _called(spec)
    if isinstance(given, dict):
        given = given.get("model")
    elif isinstance(given, tuple):
        given = given[0] if given else None
    if given is None:
        raise InputError(f"{spec} gives no model")
    return given


def _called(spec: str) -> Any:
    """What the function gives."""
    if not _SPEC.fullmatch(spec):
        raise InputError(f"expected a function as pkg.module:build, got {spec!r:.120}")
    module, _, path = spec.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except Exception as error:  # whatever a stranger's module raises, named
        raise InputError(f"{spec} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise InputError(f"{spec} is a {type(found).__name__}, expected a function without arguments")
    try:
        return found()
    except FastrecError:
        raise
    except Exception as error:  # whatever a stranger's function raises, named
        raise InputError(f"{spec} fails: {type(error).__name__}: {error}") from error
