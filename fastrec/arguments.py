"""The arguments of `compress` as what they mean, and the caller's random numbers kept."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from .backends import Backend, installed
from .budget import Budget
from .errors import BackendUnavailable, InputError
from .measure import Evaluator
from .recipe import Recipe
from .techniques import TECHNIQUES, Technique

__all__ = [
    "check_budget",
    "check_workers",
    "own_random_state",
    "read_backends",
    "read_recipe",
    "read_resume",
    "read_seconds",
    "read_sizes",
]


def check_budget(budget: Budget | None, evaluate: object) -> None:
    """Whether `evaluate` can judge what the budget bounds. Raises `InputError`."""
    if budget is None:
        return
    if not isinstance(budget, Budget):
        raise InputError(f"budget takes a Budget, as Budget(max_loss={{'auc': 0.0002}}), got {budget!r:.80}")
    if budget.minimize == "bytes" and not budget.bounded:
        raise InputError(
            "Budget(minimize='bytes') looks for the smallest model within a loss, and none is allowed: give max_loss as well"
        )
    if budget.bounded and evaluate is None:
        raise InputError(
            "a budget of what may be lost needs evaluate=..., which says what was lost: see fastrec.measure.evaluator"
        )
    if budget.segments and not (isinstance(evaluate, Evaluator) and evaluate.segments):
        raise InputError(
            "Budget(segments=...) bounds the loss in each segment, and evaluate names none: make it with fastrec.measure.evaluator(..., segments={...})"
        )


def read_recipe(
    recipe: Technique | Sequence[Technique] | Recipe | None, budget: Budget | None = None
) -> Recipe:
    """The recipe meant: for None every exact technique that saves time, and what the budget asks for. Raises `InputError`."""
    if recipe is None:
        asked = [kind.asked_by(budget) for kind in TECHNIQUES.values()]
        return Recipe(tuple(technique for technique in asked if technique is not None))
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Technique):
        return Recipe((recipe,))
    if isinstance(recipe, Sequence) and not isinstance(recipe, str):
        return Recipe(tuple(recipe))
    raise InputError(f"recipe takes a technique, a sequence of them or a Recipe, got {recipe!r:.80}")


def read_backends(backends: Backend | Sequence[Backend] | None) -> tuple[Backend, ...]:
    """The backends meant: those installed for None. Raises `InputError`, or `BackendUnavailable` for one asked for."""
    if backends is None:
        return installed()
    given = (backends,) if isinstance(backends, Backend) else tuple(backends)
    for index, backend in enumerate(given):
        if not isinstance(backend, Backend):
            cure = "; make an instance of it" if isinstance(backend, type) else ""
            raise InputError(f"backends[{index}] is not a backend: {backend!r:.80}{cure}")
        reason = backend.unavailable()
        if reason is not None:
            raise BackendUnavailable(f"{backend.name} cannot run here: {reason}", backend=backend.name)
    return given


def read_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """The numbers of rows, ascending, each once. Raises `InputError`."""
    good = isinstance(sizes, Sequence) and sizes and all(type(n) is int and n > 0 for n in sizes)
    if not good:
        raise InputError(f"batch_sizes takes whole numbers above 0, got {sizes!r:.80}")
    return tuple(sorted(set(sizes)))


def read_seconds(seconds: float | None, usual: float) -> float:
    """The time limit: the usual one for None. Raises `InputError`."""
    if seconds is None:
        return usual
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
        raise InputError(f"seconds takes a finite number above 0, got {seconds!r:.80}")
    return float(seconds)


def read_resume(resume: str | PathLike[str] | None, searching: bool) -> Path | None:
    """The file of trials. Raises `InputError` where there is nothing to keep in it."""
    if resume is None:
        return None
    if not searching:
        raise InputError(
            "resume=... keeps the trials of a search, and none is made: give evaluate=..., a budget of what may be lost, and no recipe"
        )
    return Path(resume)


def check_workers(workers: object, searching: bool) -> None:
    """Whether trials may be given to these. Raises `InputError`, also where there are none to give."""
    if workers is None:
        return
    if not callable(getattr(workers, "open", None)):
        raise InputError(
            f"workers takes what opens them, as fastrec.distributed.searching.ray_workers(2), got {workers!r:.80}"
        )
    if not searching:
        raise InputError(
            "workers=... make the trials of a search, and none is made: give evaluate=..., a budget of what may be lost, and no recipe"
        )


@contextlib.contextmanager
def own_random_state() -> Iterator[None]:
    """Whatever is drawn inside, the caller's random numbers go on as if nothing had been."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
