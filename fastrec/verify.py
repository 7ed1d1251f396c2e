"""Whether a session may stand for the original: how far its answers are off, and whether a row's depends on others."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from .guards import Bounds
from .inputs import Feature
from .measure import fidelity
from .measure.accuracy import Fidelity
from .program import Answers, Program
from .rows import count_rows, take_rows

__all__ = ["Expected", "checked_rows", "neighbours", "once_each", "verify"]

Expected: TypeAlias = Callable[[int, int], list[Tensor]]
"""The answers that are to be expected for a fresh batch of so many rows, by its seed."""

_CHECKED = (1, 2, 3, 33)
_OUTLIERS = (1e3, 1e30)


def checked_rows(captured: Program, sizes: Sequence[int]) -> list[int]:
    """The numbers of rows to compare at: small ones, the example's, and one that is served."""
    if captured.layout.rows is None:
        return [1]
    rows = sorted({*_CHECKED, min(sizes, key=lambda n: abs(n - 100)), captured.layout.rows})
    return [count for count in rows if count not in captured.layout.exempt]


def once_each(answers: Answers, fresh: Callable[[int, int], list[Tensor]]) -> Expected:
    """What `answers` gives for fresh batches, each run once for all sessions that are compared with it."""
    return functools.cache(lambda rows, seed: list(answers(fresh(rows, seed))))


def verify(
    original: Expected,
    session: Answers,
    fresh: Callable[[int, int], list[Tensor]],
    rows: Sequence[int],
    axes: Sequence[int | None],
    reference: Expected | None = None,
) -> Fidelity | str:
    """The difference over batches of these many rows, or why the session may not serve.

    Without `reference` the session has to answer as the original does, but for rounding. With one, the plain form of
    a program that is approximate, it may stray from that no further than that strays from the original.
    `axes` are the dimensions of the answers that count rows. The answers of all batches are judged together: what
    rounding may do to one is known by the spread of many.
    """
    before: list[list[Tensor]] = []
    meant: list[list[Tensor]] = []
    after: list[list[Tensor]] = []
    for count in rows:
        for index in range(max(1, 16 // count)):
            before.append(original(count, 7 + index))
            after.append(list(session(fresh(count, 7 + index))))
            if reference is not None:
                meant.append(reference(count, 7 + index))
            for old, new in zip(before[-1], after[-1], strict=True):
                if old.shape != new.shape or old.dtype != new.dtype:
                    return f"at {count} rows it answers {tuple(new.shape)} {new.dtype}, the original {tuple(old.shape)} {old.dtype}"
    found = fidelity(_joined(before, axes), _joined(after, axes))
    if reference is None:
        return found if found.exact else f"answers differ from the original's by {found.max_abs:.3g}"
    strayed = fidelity(_joined(meant, axes), _joined(after, axes))
    allowed = fidelity(_joined(before, axes), _joined(meant, axes)).max_abs
    close = strayed.nonfinite_alike and not strayed.differing and strayed.max_abs <= allowed
    if strayed.exact or close:
        return found
    return f"answers differ from the plain form's by {strayed.max_abs:.3g}, that from the original's by {allowed:.3g}"


def neighbours(
    session: Answers,
    features: Sequence[Feature],
    crowd: Sequence[Tensor],
    axes: Sequence[int | None],
    exempt: Sequence[int] = (),
    bounds: Sequence[Bounds | None] = (),
) -> float | str:
    """How far a row's answer was seen to move with the rows beside it, or why that is more than float rounding.

    The crowd is answered as it is and turned round, and two of its rows alone and beside a row of 1e3, and of 1e30, in
    place of its floats. A scale taken from the whole batch shows here, and nowhere else; where all is the same to the
    last bit this gives 0. `exempt` are numbers of rows that the session is not called with; floats that are ids, which have
    `bounds`, stay.
    """
    count = count_rows(features, crowd) or 1
    together = list(session(list(crowd)))

    def off(batch: list[Tensor], rows: Tensor) -> Fidelity:
        """How far the answers to the first of these rows are from those in the crowd."""
        # Put in their place there: what rounding may do to one score is known by the spread of many.
        put = [
            new if axis is None else old.index_copy(axis, rows, new.narrow(axis, 0, len(rows)))
            for old, new, axis in zip(together, session(batch), axes, strict=True)
        ]
        return fidelity(together, put)

    turned = torch.arange(count).flip(0)
    found = [("in another order", off(take_rows(features, crowd, turned), turned))]
    for row in (torch.tensor([0]), torch.tensor([count // 2])):
        if 1 not in exempt:
            found.append(("alone", off(take_rows(features, crowd, row), row)))
        for outlier in _OUTLIERS:
            pair = take_rows(features, crowd, torch.cat([row, torch.tensor([count - 1])]))
            for index, (feature, tensor) in enumerate(zip(features, pair, strict=True)):
                if feature.role == "rows" and tensor.is_floating_point() and not feature.request:
                    bound = bounds[index] if index < len(bounds) else None
                    _fill(tensor, feature.axis or 0, outlier, bound)
            found.append((f"beside a row of {outlier:g}", off(pair, row)))
    for where, difference in found:
        if not difference.exact:
            return f"a row's answer differs by {difference.max_abs:.3g} {where}: it depends on its neighbours"
    return max(difference.max_abs for _, difference in found)


def _fill(tensor: Tensor, axis: int, number: float, bound: Bounds | None) -> None:
    """Puts a number in the second row, in place of all that are no ids."""
    row = tensor.select(axis, 1)
    if bound is None:
        row.fill_(number)
    else:
        free = torch.from_numpy(np.isinf(np.broadcast_to(bound.high, tuple(tensor.shape))))
        row.masked_fill_(free.select(axis, 1), number)


def _joined(batches: Sequence[Sequence[Tensor]], axes: Sequence[int | None]) -> list[Tensor]:
    """The answers of several batches as one, along the dimensions that count rows."""
    joined = []
    for index, parts in enumerate(zip(*batches, strict=True)):
        axis = axes[index] if index < len(axes) else None
        joined.append(torch.cat(parts, axis) if axis is not None else torch.stack(parts))
    return joined
