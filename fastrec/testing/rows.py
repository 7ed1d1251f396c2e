"""Whether a row's answer is its own: the same among other rows, in another order, beside outliers, and alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..trees import tensors_of
from .pair import Flat, Pair
from .values import alike, off

__all__ = ["check_rows"]

_COUNT = 33
_OUTLIERS = (1e3, 1e30)


def check_rows(pair: Pair) -> None:
    """Raise `AssertionError` where an answer moves with the rows beside it by more than float rounding.

    The number of rows stays, as another number may be served by another session; alone a row is asked where the same one
    serves it, or where all are exact.
    """
    crowd = pair.some(_COUNT)
    if crowd is None:
        return
    where = f"{_COUNT} rows of a batch"
    together = tensors_of(pair.answer(crowd, where))
    for what, batch, place, rows in _neighbours(pair, crowd):
        answers = tensors_of(pair.answer(batch, f"{where} {what}"))
        for index, (old, new, axis) in enumerate(
            zip(together, answers, pair.layout.output_axes, strict=True)
        ):
            assert axis is not None  # there are rows in every answer: by_row
            moved = new.index_select(axis, place)
            # Put in their place: what rounding may do to one score is known by the spread of many.
            put = old.index_copy(axis, rows, moved)
            if not alike([old], [put]):
                apart = off(old.index_select(axis, rows), moved)
                row = int(rows[int(apart.movedim(axis, 0).reshape(len(rows), -1).amax(1).argmax())])
                raise AssertionError(
                    f"row {row}, output {index}: its answer moves by {float(apart.max()):.3g} {what}, expected float "
                    "rounding alone: a row's answer may not depend on its neighbours"
                )


def _neighbours(pair: Pair, crowd: Flat) -> Iterator[tuple[str, Flat, Tensor, Tensor]]:
    """Batches, the places in them that are looked at, and which rows of the crowd those are."""
    order = list(range(_COUNT))[::-1]
    yield "in another order", pair.taken(crowd, order), torch.arange(_COUNT), torch.tensor(order)
    for row in (0, _COUNT // 2):
        here = torch.tensor([row])
        other = (row + 1) % _COUNT
        beside = [row if k == row else other for k in range(_COUNT)]
        yield "beside other rows", pair.taken(crowd, beside), here, here
        for outlier in _OUTLIERS:
            batch = pair.taken(crowd, beside)
            if _fill(pair, batch, row, outlier):
                yield f"beside rows of {outlier:g}", batch, here, here
        single = pair.fast.session(1) is pair.fast.session(_COUNT) or pair.fast.exact
        if single and 1 not in pair.layout.exempt:
            yield "alone", pair.taken(crowd, [row]), torch.tensor([0]), here


def _fill(pair: Pair, flat: Flat, row: int, number: float) -> bool:
    """Put a number in place of the floats of all other rows that are no ids, not the request's and of no declared range."""
    filled = False
    promised = pair.fast.recipe.promised
    for index, (feature, tensor) in enumerate(zip(pair.layout.features, flat, strict=True)):
        if feature.role != "rows" or not tensor.is_floating_point() or feature.request:
            continue
        if pair.bounds is None or feature.name in promised:
            continue
        others = torch.ones_like(tensor, dtype=torch.bool)
        others.select(feature.axis or 0, row).fill_(False)
        bound = pair.bounds[index]
        if bound is not None:
            others &= torch.from_numpy(np.isinf(np.broadcast_to(bound.high, tuple(tensor.shape))).copy())
        tensor.masked_fill_(others, number)
        filled = filled or bool(others.any())
    return filled
