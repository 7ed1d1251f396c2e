"""Forms by backends: each is checked, those that lead compile the others, what fails is named."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastrec.backends import Backend, Eager, OnnxRuntime, Session
from fastrec.capture import capture
from fastrec.errors import BackendError
from fastrec.journal import Journal
from fastrec.memo import Memo
from fastrec.program import Program
from fastrec.progress import stages
from fastrec.request import Once
from fastrec.sessions import Form, Made, compile_forms


@dataclass(frozen=True)
class Broken(Backend):
    """Refuses every graph."""

    name: ClassVar[str] = "broken"

    def unavailable(self) -> str | None:
        return None

    def compile(self, program: Program) -> Session:
        raise BackendError("takes no graph", backend=self.name)


@dataclass(frozen=True)
class Wrong(Backend):
    """Answers one more than the graph."""

    name: ClassVar[str] = "wrong"

    def unavailable(self) -> str | None:
        return None

    def compile(self, program: Program) -> Session:
        right = Eager().compile(program)

        class Off(Session):
            def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
                return tuple(answer + 1 for answer in right(*tensors))

        return Off()


@dataclass(frozen=True)
class Slow(Eager):
    """Runs operators as they are."""

    name: ClassVar[str] = "slow"

    def plain(self, program: Program) -> bool:
        return True


def read() -> Program:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    return Program.read(model, torch.randn(5, 4))


def compiled(
    backends: Sequence[Backend],
    seconds: float = 600.0,
    *,
    exact: bool = True,
    memo: Memo | None = None,
    program: Program | None = None,
) -> tuple[dict[str, Made], Journal]:
    program = program or read()
    captured = capture(program) if memo is None else memo.captured(program, lambda p: (capture(p),) * 2)[0]
    now = time.perf_counter()
    journal = Journal(now, now + seconds)
    forms = (
        Form("", lambda: captured, exact=exact, main=True),
        Form("again", lambda: captured),
        Form("rows", lambda: captured, whole=True),
    )
    with stages(False) as show:
        made = compile_forms(
            journal,
            program,
            Once(program.layout.features),
            forms,
            backends,
            lambda rows, index: [torch.randn(rows, 4, generator=torch.Generator().manual_seed(index))],
            (1, 8),
            show,
            memo=memo,
        )
    return made, journal


def test_every_form_of_the_leading_backend() -> None:
    made, journal = compiled([Eager()])
    assert list(made) == ["eager", "eager, again", "eager, rows"]
    assert not journal.trials and all(one.fidelity.identical for one in made.values())


def test_what_cannot_be_compiled_or_answers_otherwise_is_named() -> None:
    made, journal = compiled([Broken(), Wrong(), Eager()])
    assert list(made) == ["eager", "eager, again", "eager, rows"]
    assert [(trial.session, trial.rows) for trial in journal.trials] == [("broken", 0), ("wrong", 0)]
    assert journal.trials[0].reason == "takes no graph" and "differ" in journal.trials[1].reason


def test_when_the_time_is_gone_the_first_form_of_the_first_backend_is_left() -> None:
    made, journal = compiled([Eager(), Wrong()], seconds=1e-9)
    assert list(made) == ["eager"]
    assert all("time limit" in trial.reason for trial in journal.trials)
    assert [trial.session for trial in journal.trials] == ["wrong", "eager, again", "eager, rows"]


def test_what_runs_reference_operators_as_they_are_comes_last() -> None:
    assert next(iter(compiled([Slow(), Eager()])[0])) == "slow"
    assert next(iter(compiled([Slow(), Eager()], exact=False)[0])) == "eager"


def test_what_was_compiled_before_is_there_however_late_it_is() -> None:
    memo, program = Memo(), read()
    backends = [Eager(), OnnxRuntime()]
    first, _ = compiled(backends, memo=memo, program=program)
    again, _ = compiled(backends, 1e-9, memo=memo, program=program)
    assert list(again) == ["eager", "onnxruntime"] and len(first) > 2
