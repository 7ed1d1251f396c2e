"""What a command gives: an exit code, words for people and data for programs; errors in one line."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import CorruptArtifactError, FastrecError, UnsafeArtifactError

__all__ = ["DAMAGED", "FAILED", "INTERNAL", "OK", "USAGE", "Outcome", "run"]

OK, FAILED, USAGE, DAMAGED, INTERNAL = range(5)
"""All is well; slower, other answers or a budget that was missed; a call that does not fit; an artifact that is refused; a fault of fastrec."""

_LONG = 2000


@dataclass(frozen=True)
class Outcome:
    """What is printed, as words or as `data`, the exit code, and what goes to standard error beside it."""

    data: dict[str, Any]
    text: str
    code: int = OK
    messages: tuple[str, ...] = field(default=())


def run(command: str, work: str, *, as_json: bool, debug: bool, **arguments: Any) -> int:
    """Runs a function of this package, "module:function", prints what it gives, and returns the exit code.

    Errors of fastrec are one line on standard error, with `debug` after where they come from; as JSON they are an object with an
    `error` as well.
    """
    try:
        with _printing_aside():
            module, _, name = work.partition(":")
            # Loaded on first use: torch takes a second.
            outcome: Outcome = getattr(importlib.import_module(f".{module}", __package__), name)(**arguments)
    except FastrecError as error:
        outcome = _failed(
            error, DAMAGED if isinstance(error, CorruptArtifactError | UnsafeArtifactError) else USAGE
        )
        if debug:
            traceback.print_exc()
    except Exception as error:  # noqa: BLE001 - whatever it is, whoever reads the answer gets one
        traceback.print_exc()
        outcome = _failed(error, INTERNAL)
    for message in outcome.messages:
        sys.stderr.write(message.rstrip("\n") + "\n")
    if as_json:
        data = {"command": command, "exit_code": outcome.code, **outcome.data}
        sys.stdout.write(json.dumps(data, allow_nan=False, indent=1) + "\n")
    elif outcome.text:
        sys.stdout.write(outcome.text.rstrip("\n") + "\n")
    sys.stdout.flush()
    return outcome.code


def _failed(error: Exception, code: int) -> Outcome:
    kind, text = type(error).__name__, " ".join(str(error).split())[:_LONG]
    data = {"type": kind, "message": text}
    if path := getattr(error, "path", ""):
        data["path"] = str(path)
    return Outcome({"error": data}, "", code, (f"fastrec: {kind}: {text}",))


@contextlib.contextmanager
def _printing_aside() -> Iterator[None]:
    """Whatever models and libraries print goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
