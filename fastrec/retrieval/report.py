"""What was measured of an index, and what it chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..wording import amount, duration

__all__ = ["TopKReport", "WayTimed"]


@dataclass(frozen=True)
class WayTimed:
    """One way to search: the median of `rounds` calls of `batch` queries, in seconds, taking turns with the others.

    `nbytes` is what it keeps beside the items; `serves` whether calls of about this many queries go to it.
    """

    way: str
    batch: int
    seconds: float
    rounds: int
    nbytes: int
    serves: bool


@dataclass(frozen=True)
class TopKReport:
    """The figures of a `TopK`: `timed` for the best `k`, and why the ways in `absent` could not be had or were dropped.

    `queries` counts the sample, `drawn` says that it was drawn from the items for want of queries. `recall` is the
    share of the exact best k found, over the sample: 1.0 where the search is exact.
    """

    items: int
    width: int
    k: int
    queries: int
    drawn: bool
    timed: tuple[WayTimed, ...]
    absent: Mapping[str, str]
    exact: bool
    recall: float

    def __str__(self) -> str:
        sample = f"{self.queries:,} {'items drawn as queries' if self.drawn else 'queries'}"
        found = "exact" if self.exact else f"recall {self.recall:.4f}"
        lines = [f"{self.items:,} items of width {self.width}, the best {self.k}, {sample}: {found}"]
        lines += [
            f"{'*' if t.serves else ' '} {t.batch:>5,} queries  {t.way:<12} {duration(t.seconds):>8}  "
            f"({t.rounds:,} rounds, {amount(t.nbytes)})"
            for t in self.timed
        ]
        return "\n".join([*lines, *(f"  {way}: {reason}" for way, reason in self.absent.items())])
