"""The k best of many scores, exactly, in little more than one pass over them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["best_rows"]

Rows = npt.NDArray[np.int64]

_BLOCKS = 4
"""How many blocks there are for each row wanted."""
_FEW = 64
"""Up to so many scores Python sorts in less than it takes to enter the kernels of a sort."""


def best_rows(scores: Tensor, k: int, *, within: float = 0.0) -> Tensor:
    """Rows of the k largest of `scores` (M,), best first, equal ones by row; then those up to `within` below.

    The k-th largest of the maxima of any k or more blocks is a bound that k scores reach: only what reaches it is
    sorted. NaN counts as the largest, as in `torch.topk`. `1 <= k <= M`. Cost: two passes over the scores.

    Example:
        >>> best_rows(torch.tensor([0.1, 0.9, 0.3, 0.9]), 3).tolist()
        [1, 3, 2]
        >>> best_rows(torch.tensor([0.1, 0.9, 0.3, 0.9]), 2, within=0.7).tolist()
        [1, 3, 2]
    """
    if scores.is_floating_point() and scores.element_size() < 4:
        scores = scores.float()
    numbers = scores.numpy()
    rows = np.arange(len(numbers)) if len(numbers) <= 2 * _BLOCKS * k else _reaching(scores, k, within)
    if len(rows) <= _FEW:
        values = numbers[rows].tolist()
        # NaN compares with nothing, and makes every sum NaN.
        if not math.isnan(sum(values)):
            return torch.from_numpy(rows[_order(values, k, within)])
    return _sorted(scores, torch.from_numpy(rows), k, within)


def _order(values: list[Any], k: int, within: float) -> list[int]:
    """The places of the k largest of a few numbers, and of those up to `within` below."""
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    if not within:
        return order[:k]
    least = values[order[k - 1]] - within
    return [place for place in order if values[place] >= least]


def _sorted(scores: Tensor, rows: Tensor, k: int, within: float) -> Tensor:
    """The same of these rows (n,), in rising order, of which any may be NaN."""
    order = torch.sort(scores[rows], descending=True, stable=True)
    if not within:
        return rows[order.indices[:k]]
    kept = order.values >= order.values[k - 1] - within
    kept[:k] = True
    return rows[order.indices[kept]]


def _reaching(scores: Tensor, k: int, within: float) -> Rows:
    """Rows whose score is at least a bound that k scores reach, less `within`."""
    blocks = min(len(scores) // 2, max(_BLOCKS * k, 256))
    size = len(scores) // blocks
    maxima = scores[: blocks * size].view(size, blocks).amax(0)
    bound = maxima.topk(k).values[-1].item()
    limit = bound - within if within else bound
    # Written so that NaN passes.
    reaching: Rows = (~(scores.numpy() < limit)).nonzero()[0]
    return reaching
