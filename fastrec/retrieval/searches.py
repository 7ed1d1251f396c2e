"""The ways to search, as one shape: queries in, the best rows out."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .best import Best
from .best_rows import best_rows
from .scan import LeftOut, scan
from .stored import EPS, LOST, Stored
from .ways import Way

__all__ = ["AllScores", "Reranked", "Scanned", "Search"]

_AT_ONCE = 1 << 22
_MORE = 8


class Search(Protocol):
    """One way to find the k best rows of each query. `nbytes` is what it keeps beside the items."""

    name: str
    nbytes: int

    def find(self, queries: Tensor, k: int, left_out: LeftOut | None) -> Best:
        """The k best rows of each query (Q, d)."""
        ...


class AllScores:
    """All products in float32, and those within rounding of the k-th again in float64. Keeps nothing."""

    name, nbytes = "all scores", 0

    def __init__(self, stored: Stored) -> None:
        self.stored = stored

    def find(self, queries: Tensor, k: int, left_out: LeftOut | None) -> Best:
        """See `Search`. Cost: one product, and one or two passes over the scores."""
        stored, best = self.stored, Best(len(queries), k)
        # Both the k-th score and the one compared with it may be off.
        within = 2 * (2 * (stored.width + 8) * EPS * queries.double().norm(dim=1) * stored.caps[0] + LOST)
        step = max(1, _AT_ONCE // stored.count)
        for start in range(0, len(queries), step):
            some = queries[start : start + step]
            scores = some @ stored.items.T if len(some) > 1 else torch.mv(stored.items, some[0])[None]
            if left_out is not None:
                part = left_out.of(start, start + len(some))
                scores[part.asked, stored.order[part.places]] = -torch.inf
            few = scores.topk(min(stored.count, k + k // 2 + _MORE), dim=1)
            far = few.values[:, -1] < few.values[:, k - 1] - within[start : start + step]
            ending = far | (few.values.shape[1] == stored.count)
            known = ending[:, None] & (few.values > -torch.inf)
            asked, column = known.nonzero(as_tuple=True)
            self._add(best, queries, asked + start, few.indices[asked, column])
            for number in (~ending).nonzero()[:, 0].tolist():
                # Many are as good as the k-th.
                one = scores[number]
                rows = best_rows(one, k, within=float(within[start + number]))
                rows = rows[one[rows] > -torch.inf]
                self._add(best, queries, torch.full((len(rows),), start + number), rows)
        return best

    def _add(self, best: Best, queries: Tensor, asked: Tensor, rows: Tensor) -> None:
        best.add(asked, self.stored.scores(queries, asked, rows), rows)


class Scanned:
    """Blocks by falling length, by an exact way's bounds."""

    def __init__(self, stored: Stored, way: Way) -> None:
        self.stored, self.way, self.name, self.nbytes = stored, way, way.name, way.nbytes

    def find(self, queries: Tensor, k: int, left_out: LeftOut | None) -> Best:
        """See `Search`."""
        return scan(self.stored, self.way, queries, k, left_out)


class Reranked:
    """The best `candidates` (10 k for None) by an approximate way's estimates, scored exactly."""

    def __init__(self, stored: Stored, way: Way, candidates: int | None) -> None:
        self.stored, self.way, self.name, self.nbytes = stored, way, way.name, way.nbytes
        self.candidates = candidates

    def find(self, queries: Tensor, k: int, left_out: LeftOut | None) -> Best:
        """See `Search`: of the candidates."""
        wanted = min(self.stored.count, max(k, self.candidates or 10 * k))
        rows = scan(self.stored, self.way, queries, wanted, left_out).rows
        asked, column = (rows >= 0).nonzero().unbind(1)
        rows, best = rows[asked, column], Best(len(queries), k)
        best.add(asked, self.stored.scores(queries, asked, rows), rows)
        return best
