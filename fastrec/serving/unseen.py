"""The best of scores where some rows are left out, because they were seen."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from ..retrieval.best_rows import best_rows

__all__ = ["are_near", "best_unseen", "filled"]

_LISTED = 64
"""Up to so many scores Python compares with less disturbance to the call than kernels."""


def best_unseen(scores: Tensor, seen: Tensor | None, k: int, within: float) -> tuple[Tensor, Tensor]:
    """The k best of the scores (M,) of rows that were not seen, and what is up to `within` below, with their rows."""
    if seen is None or not len(seen):
        rows = best_rows(scores, k, within=within)
        return scores[rows], rows
    lowest = _lowest(scores)
    if len(seen) + k <= len(scores):
        # Scores may be the catalogue's own.
        lowered = scores.index_fill(0, seen, lowest)
        rows = best_rows(lowered, k, within=within)
        best = lowered[rows]
        if best[-1].item() > lowest:
            return best, rows
    # The seen are not told from the least by their score, or fewer than k are left.
    unseen = torch.ones(len(scores), dtype=torch.bool)
    unseen[seen] = False
    left = unseen.nonzero()[:, 0]
    if not len(left):
        return scores[:0], left
    rows = left[best_rows(scores[left], min(k, len(left)), within=within)]
    return scores[rows], rows


def are_near(best: Tensor, within: float) -> bool:
    """Whether any of these scores (n,), best first, is nearer than that to the one before."""
    if len(best) > _LISTED:
        return bool((best.diff() > -within).any())
    values = best.tolist()
    return any(after - before > -within for before, after in pairwise(values))


def filled(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The scores and rows, filled up to k with none."""
    lacking = k - len(rows)
    if not lacking:
        return scores, rows
    none = scores.new_full((lacking,), _lowest(scores))
    return torch.cat([scores, none]), torch.cat([rows, rows.new_full((lacking,), -1)])


def _lowest(scores: Tensor) -> float | int:
    """What none of such scores is below."""
    return -math.inf if scores.is_floating_point() else torch.iinfo(scores.dtype).min
