"""What was already done to a program, so that recipes that begin alike are applied, and compiled, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from torch import fx, nn

from .artifact.graphs import with_plain_names
from .backends import Backend, Session
from .errors import CaptureError
from .program import Program
from .techniques import Applied, Technique

__all__ = ["Key", "Memo"]

Key = tuple[int, str]
"""A model, and what was done to it."""


class Memo:
    """Gives again what a technique made of a program, what a backend did, and what capturing it gave.

    Programs are told apart by their model, which lives as long as what was made of it is kept: techniques and backends never write
    to a program, and do the same to the same one. `touched` gathers what was asked for; `keep` forgets the rest, with its tensors.
    """

    def __init__(self) -> None:
        self.touched: set[Key] = set()
        self._applied: dict[Key, tuple[nn.Module, Applied, float]] = {}
        self._sessions: dict[Key, tuple[nn.Module, Session]] = {}
        self._captured: dict[int, tuple[nn.Module, tuple[Program, Program] | CaptureError]] = {}

    def apply(self, technique: Technique, program: Program) -> Applied:
        """What the technique makes of the program."""
        key = self._key(technique, program)
        if key not in self._applied:
            began = time.perf_counter()
            applied = technique.apply(program)
            self._applied[key] = program.model, applied, time.perf_counter() - began
        return self._applied[key][1]

    def took(self, technique: Technique, program: Program) -> float:
        """The seconds that `apply` took when it was done."""
        return self._applied[self._key(technique, program)][2]

    def compile(self, backend: Backend, program: Program) -> Session:
        """The backend's session of the program."""
        key = self._key(backend, program)
        if key not in self._sessions:
            # Named as in an artifact, which keeps what the session was opened from.
            gm = program.model
            named = with_plain_names(gm) if isinstance(gm, fx.GraphModule) else gm
            self._sessions[key] = gm, backend.compile(program.with_model(named))
        return self._sessions[key][1]

    def compiled(self, backend: Backend, program: Program) -> bool:
        """Whether the backend's session of the program is there."""
        return self._key(backend, program) in self._sessions

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

    def keep(self, held: Collection[Key]) -> None:
        """Forgets what techniques and backends made and is not among `held`."""
        self._applied = {key: made for key, made in self._applied.items() if key in held}
        self._sessions = {key: made for key, made in self._sessions.items() if key in held}

    def _key(self, by: Technique | Backend, program: Program) -> Key:
        key = id(program.model), repr(by)
        self.touched.add(key)
        return key
