"""One walk over the blocks, longest rows first, that finds each query's best rows.

least       a score that k rows of a query are known to reach: it only rises
a block     is left out where |longest row| |q| < least, and so is all behind it
a row       is looked at where its estimate reaches the limit that belongs to `least`, and then scored exactly
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .best import Best
from .stored import EPS, LOST, Stored
from .ways import HIDDEN, Asked, Way

__all__ = ["LeftOut", "scan"]

_SPAN = 1 << 18
"""Estimates computed at a time."""

_GROWTH, _AT_ONCE, _AT_MOST = 4, 4096, 1 << 18


@dataclass(frozen=True)
class LeftOut:
    """Pairs of a query's number and the place of a row that it must not be given, by place."""

    asked: Tensor
    places: Tensor

    def of(self, start: int, stop: int) -> LeftOut:
        """Those of the queries `start` to `stop - 1`, numbered anew."""
        mine = (self.asked >= start) & (self.asked < stop)
        return LeftOut(self.asked[mine] - start, self.places[mine])

    def between(self, low: int, high: int) -> LeftOut:
        """Those at the places `low` to `high - 1`."""
        start, stop = torch.searchsorted(self.places, torch.tensor([low, high])).tolist()
        return LeftOut(self.asked[start:stop], self.places[start:stop])


def scan(stored: Stored, way: Way, queries: Tensor, k: int, left_out: LeftOut | None) -> Best:
    """The k best rows of each query (Q, d): by exact scores where the way is exact, else by its estimates."""
    best = Best(len(queries), k)
    lengths = queries.double().norm(dim=1) * (1 + EPS)
    blank = lengths == 0
    if bool(blank.any()):
        _first_rows(best, stored, blank.nonzero()[:, 0], left_out)
    walk = _Walk(stored, way, queries, best, torch.full((len(queries),), -torch.inf, dtype=torch.float64))
    who = (~blank).nonzero()[:, 0]
    if not len(who):
        return best
    asked = way.ask(queries)
    if len(who) < len(queries):
        asked = asked.take(~blank)
    most = max(1, _SPAN // (stored.size * len(queries)))
    first, step = 0, min(stored.blocks, -(-2 * k // stored.size))
    while first < stored.blocks:
        reached = stored.caps[first] * lengths[who] + LOST >= walk.least[who]
        left = int(reached.sum())
        if not left:
            break
        if left <= 0.8 * len(who):
            who, asked = who[reached], asked.take(reached)
            most = max(1, _SPAN // (stored.size * len(who)))
        last = min(first + step, stored.blocks)
        # What no query can reach at the end of the span need not be computed.
        within = (stored.caps[first:last, None] * lengths[who] + LOST >= walk.least[who]).any(1)
        last = first + int(within.sum())
        walk.span(asked, who, first, last, left_out)
        first, step = last, min(step * _GROWTH, most)
    return best


def _first_rows(best: Best, stored: Stored, blank: Tensor, left_out: LeftOut | None) -> None:
    """Queries of zeros score every row alike, 0, and are given the first rows that they may have."""
    k = best.rows.shape[1]
    for query in blank.tolist():
        hidden = stored.order[left_out.places[left_out.asked == query]] if left_out is not None else blank[:0]
        rows = torch.arange(min(stored.count, k + len(hidden)))
        rows = rows[~torch.isin(rows, hidden)][:k]
        best.rows[query, : len(rows)], best.scores[query, : len(rows)] = rows, 0.0


@dataclass
class _Walk:
    stored: Stored
    way: Way
    queries: Tensor
    best: Best
    least: Tensor

    def span(self, asked: Asked, who: Tensor, first: int, last: int, left_out: LeftOut | None) -> None:
        """Looks at the blocks `first` to `last - 1` for the queries `who`."""
        stored = self.stored
        estimates = asked.estimates(first, last)
        hidden = HIDDEN[estimates.dtype]
        if last == stored.blocks:
            estimates[stored.count - first * stored.size :] = hidden
        if left_out is not None:
            self._hide(estimates, who, first, last, left_out)
        if first == 0:
            self._start(asked, who, estimates)
        in_groups = estimates.view(last - first, stored.group, -1, len(who))
        limits = asked.limits(first, last, self.least[who])
        block, group, query = (in_groups.amax(1) >= limits[:, None]).nonzero(as_tuple=True)
        if not len(block):
            return
        members = in_groups[block, :, group, query]
        found, member = (members >= limits[block, query][:, None]).nonzero(as_tuple=True)
        block, group, query = block[found], group[found], query[found]
        estimate = members[found, member]
        place = (first + block) * stored.size + member * in_groups.shape[2] + group
        at_once = max(_AT_ONCE, len(who) * self.best.rows.shape[1])
        while len(place) > at_once:
            self._take(asked, who, place[:at_once], query[:at_once], estimate[:at_once])
            limits = asked.limits(first, last, self.least[who])
            still = (estimate[at_once:] >= limits[block[at_once:], query[at_once:]]).nonzero()[:, 0] + at_once
            block, query, place, estimate = block[still], query[still], place[still], estimate[still]
            # What has not fallen by now may be equal scores: few passes over many of them.
            at_once = min(2 * at_once, max(_AT_MOST, at_once))
        if len(place):
            self._take(asked, who, place, query, estimate)

    def _hide(self, estimates: Tensor, who: Tensor, first: int, last: int, left_out: LeftOut) -> None:
        start = first * self.stored.size
        here = left_out.between(start, last * self.stored.size)
        column = torch.full((len(self.queries),), -1)
        column[who] = torch.arange(len(who))
        columns = column[here.asked]
        asked = columns >= 0
        estimates[here.places[asked] - start, columns[asked]] = HIDDEN[estimates.dtype]

    def _start(self, asked: Asked, who: Tensor, estimates: Tensor) -> None:
        """A first bound: what the k rows of the first span with the highest estimates reach."""
        k = self.best.rows.shape[1]
        if k > len(estimates):
            return
        top = estimates.T.contiguous().topk(k, dim=1)
        scores = self._scores(
            asked,
            who,
            # Places beyond the last row are hidden, and only come where rows lack.
            top.indices.flatten().clamp(max=self.stored.count - 1),
            torch.arange(len(who)).repeat_interleave(k),
            top.values.flatten(),
        )
        known = (top.values > HIDDEN[estimates.dtype]).all(1)
        least = scores.view(len(who), k).amin(1).double()
        self.least[who] = torch.where(known, least, self.least[who])

    def _take(self, asked: Asked, who: Tensor, places: Tensor, query: Tensor, estimates: Tensor) -> None:
        scores = self._scores(asked, who, places, query, estimates)
        self.best.add(who[query], scores, self.stored.order[places])
        self.least = torch.maximum(self.least, self.best.least)

    def _scores(self, asked: Asked, who: Tensor, places: Tensor, query: Tensor, estimates: Tensor) -> Tensor:
        if self.way.exact:
            return self.stored.scores(self.queries, who[query], self.stored.order[places])
        return asked.scores(places // self.stored.size, query, estimates)
