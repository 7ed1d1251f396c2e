"""What was already done to a program, so that recipes that begin alike are applied once."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import nn

from .errors import CaptureError
from .program import Program
from .techniques import Applied, Technique

__all__ = ["Memo"]

_Key = tuple[int, str]


class Memo:
    """Gives again what a technique made of a program, and what capturing it gave.

    Programs are told apart by their model, which lives as long as what was made of it is kept: techniques never write to a
    program, and do the same to the same one. `held` names what is there now; `keep` forgets the rest, with its tensors.
    """

    def __init__(self) -> None:
        self._applied: dict[_Key, tuple[nn.Module, Applied]] = {}
        self._captured: dict[int, tuple[nn.Module, tuple[Program, Program] | CaptureError]] = {}

    @property
    def held(self) -> frozenset[_Key]:
        """What is kept now."""
        return frozenset(self._applied)

    def apply(self, technique: Technique, program: Program) -> Applied:
        """What the technique makes of the program."""
        key = id(program.model), repr(technique)
        if key not in self._applied:
            self._applied[key] = program.model, technique.apply(program)
        return self._applied[key][1]

    def captured(
        self, program: Program, capture: Callable[[Program], tuple[Program, Program]]
    ) -> tuple[Program, Program]:
        """What `capture` makes of the program; the `CaptureError` it raised is raised again."""
        key = id(program.model)
        if key not in self._captured:
            try:
                made: tuple[Program, Program] | CaptureError = capture(program)
            except CaptureError as error:
                made = error
            self._captured[key] = program.model, made
        found = self._captured[key][1]
        if isinstance(found, CaptureError):
            raise found
        return found

    def keep(self, held: Collection[_Key]) -> None:
        """Forgets whatever is not among `held`."""
        self._applied = {key: made for key, made in self._applied.items() if key in held}
