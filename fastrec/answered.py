"""Which numbers of rows a model answers at all: some drop a dimension of one, and raise at a single row."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from .errors import InputError
from .journal import Journal
from .plan import remaining
from .program import Program
from .request import Once
from .rows import count_rows, take_rows
from .sessions import original_call

__all__ = ["answered"]

_SHARE = 0.02
"""Of the time that is left, what one call may take for larger ones to be tried as well."""


def answered(work: Journal, program: Program, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes at which the model answers rows of its example, over and over; the others are noted.

    Raises `InputError` where it answers none of them. Cost: a call of the model at each size; beyond one that takes long, none.
    """
    features, layout = program.layout.features, program.layout
    flat = Once(features).all(program.flat(program.batch))
    rows = count_rows(features, flat)
    if layout.rows is None or not rows:
        return tuple(sizes)
    call = original_call(program.private())
    kept, said = list[int](), ""
    for index, size in enumerate(sizes):
        given = take_rows(features, flat, torch.arange(size) % rows)
        began = time.perf_counter()
        try:
            call(given)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's model raises
            said = f"{type(error).__name__}: {error}"[:300]
            work.notes.append(f"not measured at {size:,} rows, which the model does not answer: {said}")
            continue
        kept.append(size)
        if time.perf_counter() - began > _SHARE * remaining(work.deadline):
            return (*kept, *sizes[index + 1 :])
    if not kept:
        raise InputError(
            f"batch_sizes: the model answers none of {', '.join(map(str, sizes))} rows ({said}); the example has {rows:,}"
        )
    return tuple(kept)
