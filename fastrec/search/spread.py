"""Trials by several workers at once, whatever engine runs them: who makes which, and what is done where one is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from typing import Protocol

from ..recipe import Recipe
from ..tried import Tried, said
from .resume import Recorded
from .task import Task

__all__ = ["Spread", "Worker", "Workers"]

Worker = Callable[[Recipe, Recipe], Future[Tried]]
"""Makes one trial elsewhere, one at a time. A call or a future that fails says that the worker is lost, not the trial."""

_LOST = 2
"""How many workers are lost in the same trial before it is taken to be what ends them."""


class Workers(Protocol):
    """Where trials may be made beside this process."""

    def open(self, task: Task, notes: list[str], seconds: float) -> AbstractContextManager[Sequence[Worker]]:
        """Those that are ready to make trials of the task within so many seconds, gone when it is left; `notes` are told what is not as it was
        asked for.

        None of them shares a core with another one, and each has as many threads as this process.
        """
        ...


class Spread:
    """A trial that workers make, and others beside it that were announced; here where there is no worker, or none is left.

    Whoever makes a trial makes it alone on its cores, beside a start and a best that it compiled itself. A trial whose worker was lost is
    made by another one; one that two were lost in has failed, so that it does not end this process too.
    """

    def __init__(self, here: Recorded, workers: Sequence[Worker], notes: list[str]) -> None:
        self._here, self._idle, self._notes = here, list(workers), notes
        self._busy: dict[Future[Tried], tuple[Worker, Recipe, Recipe]] = {}
        self._announced: list[tuple[Recipe, Recipe]] = []
        self._lost: Counter[str] = Counter()
        self._holds: dict[str, Worker] = {}

    def __call__(self, recipe: Recipe, best: Recipe) -> Tried:
        """What became of a recipe beside the best so far, as soon as it is known."""
        while not self._here.has(recipe, best) and (self._idle or self._busy):
            self._hand_out([(recipe, best), *self._announced])
            self._gather()
        return self._here(recipe, best)

    def ahead(self, recipes: Sequence[Recipe], best: Recipe) -> None:
        """Lets whoever is idle make these, in place of what was announced before."""
        self._announced = [(recipe, best) for recipe in recipes]
        # What is known already may change what comes next, and that is announced at once.
        if recipes and not self._here.has(recipes[0], best):
            self._hand_out(self._announced)

    def rest(self) -> None:
        """Waits until no worker is busy, as before this process computes something beside them."""
        self._announced = []
        while self._busy:
            self._gather()

    def _hand_out(self, wanted: Sequence[tuple[Recipe, Recipe]]) -> None:
        """Gives each of those that nobody has made or makes to a worker, as far as there are idle ones."""
        for recipe, best in wanted:
            if not self._idle:
                break
            busy = [(one, beside) for _, one, beside in self._busy.values()]
            if (recipe, best) not in busy and not self._here.has(recipe, best):
                worker = self._take(best)
                try:
                    self._busy[worker(recipe, best)] = worker, recipe, best
                except Exception as error:  # noqa: BLE001 - whatever an engine raises, another one makes it
                    self._lose(recipe, best, error)

    def _take(self, best: Recipe) -> Worker:
        """An idle worker, that which has compiled the best where it is one: the others would have to do so first."""
        holder = self._holds.get(best.to_json())
        worker = holder if holder in self._idle else self._idle[0]
        assert worker is not None
        self._idle.remove(worker)
        return worker

    def _gather(self) -> None:
        """Notes what is over, once something is."""
        for future in wait(self._busy, return_when=FIRST_COMPLETED).done:
            worker, recipe, best = self._busy.pop(future)
            error = future.exception()
            if error is not None:
                self._lose(recipe, best, error)
                continue
            self._idle.append(worker)
            self._holds[recipe.to_json()] = worker
            self._here.keep(recipe, best, future.result())

    def _lose(self, recipe: Recipe, best: Recipe, error: BaseException) -> None:
        """Notes that a worker is no more, and with two that the trial has failed."""
        left = len(self._idle) + len(self._busy)
        rest = f"{left} make the other trials" if left else "the other trials were made in this process"
        self._notes.append(
            f"a worker was lost as it tried {said(recipe)}; {rest}: {type(error).__name__}: {error}"[:300]
        )
        key = recipe.to_json()
        self._lost[key] += 1
        if self._lost[key] == _LOST:
            self._here.keep(
                recipe, best, Tried(recipe, "failed", f"{_LOST} workers were lost as they tried it")
            )
