"""Stand-ins for tests: a clock that moves only when told, and a backend of known speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from fastrec.backends.base import Backend, Session
from fastrec.errors import BackendError, BackendUnavailable
from fastrec.program import Program


@dataclass
class FakeClock:
    """Counts nanoseconds, and only `advance` moves it."""

    now: int = 0

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


class FakeSession(Session):
    """Runs the model it is given, after moving the clock by the seconds such a call takes."""

    def __init__(self, model: nn.Module, clock: FakeClock, seconds: float, row_seconds: float = 0.0) -> None:
        self.model = model
        self.clock = clock
        self.seconds = seconds
        self.row_seconds = row_seconds
        self.calls = 0

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        self.calls += 1
        rows = tensors[0].shape[0] if tensors and tensors[0].dim() else 1
        self.clock.advance(self.seconds + rows * self.row_seconds)
        result = self.model(*tensors)
        return tuple(result) if isinstance(result, Sequence) else (result,)


@dataclass(frozen=True)
class FakeBackend(Backend):
    """A backend of known speed that can be told to be missing or to fail."""

    name: ClassVar[str] = "fake"

    clock: FakeClock = field(default_factory=FakeClock, compare=False)
    seconds: float = 0.001
    row_seconds: float = 0.0
    missing: str | None = None
    failure: str | None = None

    def unavailable(self) -> str | None:
        return self.missing

    def compile(self, program: Program) -> Session:
        if self.missing is not None:
            raise BackendUnavailable(self.missing, backend=self.name)
        if self.failure is not None:
            raise BackendError(self.failure, backend=self.name)
        return FakeSession(program.model, self.clock, self.seconds, self.row_seconds)
