"""The rows of a matrix in the order of their lengths, in blocks, and their exact scores."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EPS", "LOST", "Stored"]

EPS = 2.0**-23
"""The distance from 1 to the next float32."""

LOST = 2.0**-110
"""More than a product in float32 loses to numbers too small for it, flushed to zero or not."""

_BLOCK, _GROUP = 4096, 32
_RESCORED = 1 << 22


class Stored:
    """M rows of width d, longest first, in blocks of `size`; the last one is filled up with zeros.

    `order[p]` is the row at place p, `place` its inverse, `caps[b]` the length of the longest row of block b, in
    float64. As |x . q| <= |x| |q|, what follows a block of which no row can reach a score cannot either. A block is
    searched in groups: those of its rows that are equal modulo `size / group`.
    """

    group = _GROUP

    def __init__(self, items: Tensor) -> None:
        self.items = items
        self.count, self.width = items.shape
        lengths = torch.cat([part.double().norm(dim=1) for part in torch.split(items, 1 << 16)])
        self.order = torch.sort(lengths, descending=True, stable=True).indices
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(self.count)
        self.size = min(_BLOCK, -(-self.count // _GROUP) * _GROUP)
        self.blocks = -(-self.count // self.size)
        self.caps = lengths[self.order[:: self.size]]

    @property
    def nbytes(self) -> int:
        """Bytes of the order, both ways; the items are the caller's."""
        return self.order.nbytes + self.place.nbytes + self.caps.nbytes

    def block(self, number: int) -> Tensor:
        """The rows of one block (size, d), in float64."""
        rows = self.order[number * self.size : (number + 1) * self.size]
        block = torch.zeros(self.size, self.width, dtype=torch.float64)
        block[: len(rows)] = self.items[rows]
        return block

    def scores(self, queries: Tensor, asked: Tensor, rows: Tensor) -> Tensor:
        """x . q of pairs of a query's number and a row (n,): added up in float64, rounded to float32 once.

        A pair's score is the same whatever is scored beside it.
        """
        step = max(1, _RESCORED // self.width)
        parts = [
            (self.items[r].double() * queries[a].double()).sum(1).float()
            for a, r in zip(torch.split(asked, step), torch.split(rows, step), strict=True)
        ]
        return torch.cat(parts) if parts else torch.empty(0)
