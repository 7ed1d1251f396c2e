"""The best k of each query so far, as rows are found."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Best"]


class Best:
    """For each of Q queries the k highest scores so far (Q, k), highest first, and their rows, equal ones by row.

    Places not yet taken have score -inf and row -1.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.scores = torch.full((queries, k), -torch.inf)
        self.rows = torch.full((queries, k), -1)

    @property
    def least(self) -> Tensor:
        """The score (Q,) that a row must reach to be among them, in float64."""
        return self.scores[:, -1].double()

    def add(self, asked: Tensor, scores: Tensor, rows: Tensor) -> None:
        """Takes rows (n,), each new to the query of number `asked` (n,), with their scores (n,)."""
        worst, last = self.scores[asked, -1], self.rows[asked, -1]
        # Of equal scores the lower row wins; where places are free, the last has row -1.
        kept = (scores > worst) | ((scores == worst) & ((rows < last) | (last < 0)))
        asked, scores, rows = asked[kept], scores[kept], rows[kept]
        if not len(rows):
            return
        who, new_scores, new_rows = asked[:1], scores[None], rows[None]
        if len(self.rows) > 1:
            who, number, counts = torch.unique(asked, return_inverse=True, return_counts=True)
            number, order = torch.sort(number, stable=True)
            where = number, torch.arange(len(rows)) - (counts.cumsum(0) - counts)[number]
            new_scores = torch.full((len(who), int(counts.max())), -torch.inf)
            new_rows = torch.full(new_scores.shape, -1)
            new_scores[where], new_rows[where] = scores[order], rows[order]
        all_scores = torch.cat([self.scores[who], new_scores], 1)
        all_rows, order = torch.cat([self.rows[who], new_rows], 1).sort(dim=1)
        all_scores, best = all_scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        k = self.rows.shape[1]
        self.scores[who], self.rows[who] = all_scores[:, :k], all_rows.gather(1, best[:, :k])
