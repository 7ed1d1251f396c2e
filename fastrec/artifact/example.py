"""A batch that nobody gave: drawn within what the guard allows, so that an artifact holds none of the caller's data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..guards import Bounds, Guard
from ..inputs import Feature

__all__ = ["ROWS", "drawn"]

ROWS = 8
_SEED = 7


def drawn(features: Sequence[Feature], guard: Guard | None, rows: int) -> Iterator[list[Tensor]]:
    """Flat batches of `rows` rows, each another try: the first that the model takes is the one.

    Ids are uniform in their ranges, floats that are promised to be within one too; of the rest, floats are normal and whole
    numbers 0 or 1, then all are 1, then 0. A row has one value of each jagged feature.
    """
    bounds = guard.bounds if guard is not None else (None,) * len(features)
    promised = {index: (low, high) for index, low, high in (guard.promised if guard is not None else ())}
    # How many values all rows have together, by the feature that cuts them.
    totals = {f.name: rows * (f.keys if f.role == "lengths" else 1) for f in features}
    for fill in (None, 1, 0):
        rng = np.random.default_rng(_SEED)
        yield [
            _tensor(feature, bound, promised.get(index), rows, totals.get(feature.group, rows), rng, fill)
            for index, (feature, bound) in enumerate(zip(features, bounds, strict=True))
        ]


def _tensor(
    feature: Feature,
    bound: Bounds | None,
    promised: tuple[float, float] | None,
    rows: int,
    total: int,
    rng: np.random.Generator,
    fill: int | None,
) -> Tensor:
    shape = list(feature.shape)
    if feature.growing is not None:
        keys = feature.keys if feature.role == "lengths" else 1
        shape[feature.growing] = rows * keys + (feature.role == "bounds")
    if feature.role in ("starts", "bounds"):
        return torch.arange(shape[0], dtype=feature.dtype)
    if feature.role == "lengths":
        return torch.ones(shape, dtype=feature.dtype)
    if feature.role == "values":
        shape[0] = total
    floats = feature.dtype.is_floating_point
    if floats:
        low, high = promised or (0.0, 0.0)
        array = rng.uniform(low, high, shape) if promised else rng.standard_normal(shape)
    else:
        array = rng.integers(0, 2, shape).astype(np.float64)
    if fill is not None and not promised:
        array = np.full(shape, float(fill))
    if bound is not None:
        lowest, highest = (np.broadcast_to(part, shape) for part in (bound.low, bound.high))
        known = np.isfinite(highest)
        least = np.where(np.isfinite(lowest), lowest, 0.0)
        span = np.where(known, highest, 1.0) - least
        array = np.where(known, least + np.floor(rng.random(shape) * span), array)
    return torch.from_numpy(np.ascontiguousarray(array)).to(feature.dtype)
