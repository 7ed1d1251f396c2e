"""Which tables keep their rows together, so that what they hold in common is kept once.

    plain                  4 d V bytes
    by a map of its own    4 V + 4 d K               K different rows of V
    in a pool              4 V + 4 d (rows that the pool has not)

A table that is cheaper plain may still begin a pool: it lies in front as it is, and its ids are places already. To join one has
to save a tenth: a row of zeros, which most tables have, is no reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .equal import distinct

__all__ = ["Pool", "pools"]

_PAYS = 0.9


@dataclass
class Pool:
    """Tables, by their numbers, that keep their rows together; with `plain` the first lies in front as it is.

    `rows` says for each member which of its rows are kept, in order, one after another; `places` where each row of a member
    lies, None for the first of a plain pool.
    """

    plain: bool
    members: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    places: list[Tensor | None] = field(default_factory=list)
    size: int = 0


class _Open:
    """A pool that is being filled, and where it has the row of each label (-1: nowhere)."""

    def __init__(self, plain: bool, labels: int) -> None:
        self.pool = Pool(plain)
        self._place = torch.full((labels,), -1)

    def missing(self, mine: Tensor) -> int:
        """How many of these labels it has no row of."""
        return int((self._place[mine] < 0).sum())

    def add(self, number: int, labels: Tensor, first: Tensor) -> None:
        """Takes up a table; `first` is where its labels first appear."""
        pool, known = self.pool, self._place
        whole = pool.plain and not pool.members
        fresh = first[known[labels[first]] < 0].sort().values
        known[labels[fresh]] = fresh if whole else pool.size + torch.arange(len(fresh))
        pool.members.append(number)
        pool.rows.append(torch.arange(len(labels)) if whole else fresh)
        pool.places.append(None if whole else known[labels].int())
        pool.size += len(labels) if whole else len(fresh)


def pools(labels: Sequence[Tensor], width: int) -> list[Pool]:
    """The cheapest way to keep each table, of those whose rows have these labels, the ones with most different rows first.

    Every table is in one pool; one that is alone and plain is to be left as it is.
    """
    firsts = [distinct(mine) for mine in labels]
    total = 1 + max(int(mine.max()) for mine in labels)
    opened: list[_Open] = []
    for number in sorted(range(len(labels)), key=lambda k: -len(firsts[k])):
        mine, first = labels[number], firsts[number]
        plain, mapped = 4 * width * len(mine), 4 * len(mine) + 4 * width * len(first)
        best, cost = None, _PAYS * min(plain, mapped)
        for one in opened:
            joined = 4 * len(mine) + 4 * width * one.missing(mine[first])
            if joined < cost:
                best, cost = one, joined
        if best is None:
            best = _Open(plain <= mapped, total)
            opened.append(best)
        best.add(number, mine, first)
    return [one.pool for one in opened]
