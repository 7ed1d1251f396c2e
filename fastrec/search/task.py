"""What the trials of a search are made from: all of it can be moved to another process, and trials be made there."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from ..backends import Backend
from ..budget import Budget
from ..certify import Certifier, Evaluate
from ..journal import Journal
from ..memo import Memo
from ..program import Program
from ..recipe import Recipe
from ..request import Once
from .trials import Trials

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """The program, the rows that judge, the budget, who may run it at which numbers of rows, and the recipe that a search begins with."""

    program: Program
    calibration: tuple[list[Tensor], ...]
    once: Once
    evaluate: Evaluate
    budget: Budget
    backends: tuple[Backend, ...]
    sizes: tuple[int, ...]
    guarded: bool
    start: Recipe

    def trials(self, memo: Memo) -> Trials:
        """Trials that have compiled what all others are compared with.

        Raises what applying the start raises, and what `Certifier` does. Cost: labelled rows are scored once, and every backend compiles.
        """
        now = time.perf_counter()
        work = Journal(now, now, calibration=list(self.calibration))
        certifier = Certifier(self.program, self.once, self.evaluate, self.budget)
        trials = Trials(
            work, self.program, self.once, certifier, self.backends, self.sizes, memo, self.budget.minimize,
            self.guarded,
        )  # fmt: skip
        trials.begin(self.start)
        return trials
