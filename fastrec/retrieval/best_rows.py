"""The k best of many scores, exactly, in little more than one pass over them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["best_rows"]

_BLOCKS = 4
"""How many blocks there are for each row wanted."""


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
    rows = torch.arange(len(scores)) if len(scores) <= 2 * _BLOCKS * k else _reaching(scores, k, within)
    order = torch.sort(scores[rows], descending=True, stable=True)
    if not within:
        return rows[order.indices[:k]]
    kept = order.values >= order.values[k - 1] - within
    kept[:k] = True
    return rows[order.indices[kept]]


def _reaching(scores: Tensor, k: int, within: float) -> Tensor:
    """Rows whose score is at least a bound that k scores reach, less `within`."""
    blocks = min(len(scores) // 2, max(_BLOCKS * k, 256))
    size = len(scores) // blocks
    whole = blocks * size
    maxima = scores[:whole].view(size, blocks).amax(0)
    bound = maxima.topk(k).values[-1]
    limit = bound.item() - within if within else bound.item()
    # Written so that NaN passes.
    return torch.from_numpy((~(scores.numpy() < limit)).nonzero()[0])
