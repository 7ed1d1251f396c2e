"""The recipe for a budget, where none is given: found by trials on one part of the labelled rows, and checked on the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import fx

from ..budget import Budget
from ..certify import Certifier, Evaluate
from ..errors import MeasurementError
from ..journal import Journal
from ..measure import Evaluator
from ..memo import Memo
from ..program import Program
from ..progress import Stages
from ..recipe import Recipe
from ..techniques import TECHNIQUES, Technique
from ..tried import Tried, said
from .order import Ladder, search
from .resume import Recorded, fingerprint
from .spread import Spread, Worker, Workers
from .task import Task

__all__ = ["Searched", "find_recipe", "is_asked"]

_SEARCHING = 0.6
"""The share of the time for trials; the rest is for what they found."""
_STARTING = 0.3
"""The share of the time that workers may take to begin: whoever is not ready then makes no trials."""


@dataclass(frozen=True)
class Searched:
    """The best recipe, all that was tried for it, and what judges it on rows that no trial has seen; `certifies` whether losses can be certified at all."""

    recipe: Recipe
    tried: tuple[Tried, ...]
    certifier: Certifier
    certifies: bool

    @property
    def certifiable(self) -> bool:
        """Whether any loss was certified, or none would be with more rows."""
        if not self.tried:
            return self.certifies
        within = any(one.outcome in ("kept", "slower") for one in self.tried)
        verdicts = {loss.verdict for one in self.tried for loss in one.accuracy}
        return within or "not certifiable" not in verdicts


def is_asked(budget: Budget | None, evaluate: Evaluate | None) -> bool:
    """Whether what approximates is to be looked for."""
    return budget is not None and evaluate is not None and (budget.bounded or budget.p95_ms is not None)


def find_recipe(
    work: Journal, task: Task, memo: Memo, show: Stages, resume: Path | None, workers: Workers | None = None
) -> Searched:
    """The best recipe from the task's start on that is certified on one half of its rows; the start where there is nothing to certify by.

    Trials that `resume` has are not made again; those that are made `workers` make, where there are any. Raises `InputError` where that is of another search.
    """
    program, once, start, evaluate, budget = task.program, task.once, task.start, task.evaluate, task.budget
    if not isinstance(evaluate, Evaluator):
        work.notes.append(
            "nothing that approximates was tried: evaluate gives one number per model, which certifies no loss; make it with "
            "fastrec.measure.evaluator"
        )
        return Searched(start, (), Certifier(program, once, evaluate, budget), certifies=False)
    try:
        searching, checking = evaluate.split()
    except MeasurementError as error:
        work.notes.append(f"nothing that approximates was tried: the labelled rows cannot be halved: {error}")
        return Searched(start, (), Certifier(program, once, evaluate, budget), certifies=True)
    show("compiling what is exact")
    task = replace(task, evaluate=searching)
    trials = task.trials(memo)
    ladders = _ladders(trials.asked or program, budget, start)
    of = (
        {}
        if resume is None
        else fingerprint(program, task.calibration, searching, budget, task.backends, task.sizes)
    )
    here = Recorded(resume, of, trials)
    checker = Certifier(program, once, checking, budget)
    with _opened(workers, task, work, show) as several:
        spread = Spread(here, several, work.notes)
        began = time.perf_counter()
        given = _SEARCHING * max(0.0, work.deadline - began)
        usual = [0.0]

        def late(share: float) -> bool:
            return time.perf_counter() - began + usual[0] > share * given

        def timed(recipe: Recipe, best: Recipe) -> Tried:
            show(f"trying {said(recipe)}")
            seen = spread(recipe, best)
            usual[0] = 0.5 * (usual[0] + seen.seconds)
            return seen

        def confirmed(recipe: Recipe) -> bool:
            show("checking on rows that no trial has seen")
            spread.rest()
            made = trials.made(recipe)
            assert made is not None, "a recipe that was kept has something to do"
            judged = checker.of(made)
            if not judged.holds:
                work.notes.append(
                    f"found, and not certified on the rows that no trial has seen: {said(recipe)}: {judged}"
                )
            return judged.holds

        recipe, tried = search(start, ladders, timed, late, confirmed, spread.ahead, here.has)
    return Searched(recipe, tried, checker, certifies=True)


def _opened(
    workers: Workers | None, task: Task, work: Journal, show: Stages
) -> AbstractContextManager[Sequence[Worker]]:
    """Whoever makes trials beside this process."""
    if workers is None:
        return contextlib.nullcontext(())
    show("starting workers")
    return workers.open(task, work.notes, _STARTING * max(0.0, work.deadline - time.perf_counter()))


def _ladders(program: Program, budget: Budget, start: Recipe) -> list[list[Ladder]]:
    """What is tried, first what saves what is asked for; not what is given already, nor what only a limit of bytes asks for."""
    left = {technique.name for technique in start if not technique.exact}
    wanted = "bytes" if budget.minimize == "bytes" else "time"
    if wanted == "time":
        limited = Budget(bytes=1)
        left |= {name for name, kind in TECHNIQUES.items() if _approximate(kind.asked_by(limited))}
    captured = isinstance(program.model, fx.GraphModule)
    kinds = [kind for name, kind in TECHNIQUES.items() if name not in left and (captured or kind.modules)]
    return [
        [kind.rungs(program) for kind in kinds if (kind.saves == wanted) is first] for first in (True, False)
    ]


def _approximate(technique: Technique | None) -> bool:
    return technique is not None and not technique.exact
