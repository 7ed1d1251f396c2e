"""What a way to look for the best rows gives: estimates of scores, and how low the estimate of a score may be."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .stored import LOST, Stored

__all__ = ["HIDDEN", "Asked", "Way", "float_limits"]

HIDDEN = {torch.float32: -torch.inf, torch.int32: -(2**31)}
"""The estimate of a row that is not to be found: below every limit."""


class Asked(Protocol):
    """A way, asked some queries. Blocks are those of `Stored`, rows by place."""

    def estimates(self, first: int, last: int) -> Tensor:
        """An estimate for each row of the blocks `first` to `last - 1` and each query (rows, Q), float32 or int32.

        What it gave before may be overwritten.
        """
        ...

    def limits(self, first: int, last: int, least: Tensor) -> Tensor:
        """For each block and query (blocks, Q): no row whose score is at least `least` (Q,) has an estimate below it."""
        ...

    def scores(self, blocks: Tensor, asked: Tensor, estimates: Tensor) -> Tensor:
        """The scores (n,) that some estimates stand for, of rows in these blocks, for queries of these numbers."""
        ...

    def take(self, which: Tensor) -> Asked:
        """The same for some of the queries."""
        ...


class Way(Protocol):
    """One way to look for the best rows. An exact one's limits hold for certain."""

    name: str
    exact: bool
    nbytes: int

    def ask(self, queries: Tensor) -> Asked:
        """Prepares for queries (Q, d)."""
        ...


def float_limits(
    stored: Stored, first: int, last: int, least: Tensor, lengths: Tensor, slack: float
) -> Tensor:
    """Limits in float32 of estimates that are off by up to `slack` |x| |q|."""
    limits = least - slack * stored.caps[first:last, None] * lengths - LOST
    return limits.clamp(min=torch.finfo(torch.float32).min).float()
