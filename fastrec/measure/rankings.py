"""Metrics of candidate lists: each list has a value, and lists are what is independent of each other.

Rows of one list that have the same score stand in no order, so a list counts what it is worth on average over the orders they might
be in: scores that say nothing are worth what chance is, wherever the relevant row happens to be given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.special import gammaln

from ..errors import MeasurementError
from .paired import Array, Paired, mean_change, rare

__all__ = ["Lists", "compare", "gauc", "hit", "mrr", "ndcg", "recall"]


@dataclass(frozen=True)
class Lists:
    """Rows of L lists, each list from its highest score to its lowest, cut into B blocks of one score.

    Of each row: `gains`, `place` in its list from 0, `block`. Of each block: `list_of` it, the place it `begins`, its `size`, how
    many are `relevant`. Of each list: `rows`.
    """

    gains: Array
    place: Array
    block: Array
    list_of: Array
    begins: Array
    size: Array
    relevant: Array
    rows: Array

    @classmethod
    def of(cls, groups: Array, scores: Array, gains: Array) -> Lists:
        """The lists of rows with `groups` 0 ... L - 1, `scores` and `gains` >= 0, all (N,). O(N log N)."""
        order = np.lexsort((-scores, groups))
        group, score, gain = groups[order], scores[order], gains[order]
        rows = np.bincount(group)
        place = np.arange(len(group)) - (np.cumsum(rows) - rows)[group]
        first = np.ones(len(group), dtype=bool)
        first[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
        block = np.cumsum(first) - 1
        size, relevant = np.bincount(block), np.bincount(block, weights=gain > 0)
        return cls(gain, place, block, group[first], place[first], size, relevant, rows)

    def by_block(self, values: Array) -> Array:
        """The sums of values of rows over each block."""
        return np.bincount(self.block, weights=values, minlength=len(self.size))

    def by_list(self, values: Array) -> Array:
        """The sums of values of blocks over each list."""
        return np.bincount(self.list_of, weights=values, minlength=len(self.rows))

    def within(self, k: int) -> Array:
        """How many rows of each block are among the first k."""
        found: Array = np.clip(k - self.begins, 0, self.size)
        return found


def ndcg(lists: Lists, k: int) -> Array:
    """DCG / ideal DCG, DCG = sum_{i <= k} gain_i / log2(i + 1), ties by their average (McSherry and Najork, 2008)."""

    def dcg(some: Lists) -> Array:
        discount = np.where(some.place < k, 1 / np.log2(some.place + 2.0), 0.0)
        return some.by_list(some.by_block(discount) / some.size * some.by_block(some.gains))

    of_row = lists.list_of[lists.block]
    ideal = dcg(Lists.of(of_row, lists.gains, lists.gains))
    return dcg(lists) / np.where(ideal > 0, ideal, 1)


def recall(lists: Lists, k: int) -> Array:
    """The share of relevant rows that are among the first k; the mean over the orders of ties."""
    found, there = lists.by_list(lists.relevant * lists.within(k) / lists.size), lists.by_list(lists.relevant)
    return found / np.maximum(there, 1)


def hit(lists: Lists, k: int) -> Array:
    """1 where a relevant row is among the first k, else 0; the chance of it where ties are cut.

    Of t rows of one score with r relevant, of which s come first, none is with C(t - r, s) / C(t, s).
    """
    taken, rest = lists.within(k), lists.size - lists.relevant
    missed = np.zeros(len(rest))
    some = (lists.relevant > 0) & (taken > 0)
    never = some & (taken > rest)
    cut = some & ~never
    missed[cut] = _choose(rest[cut], taken[cut]) - _choose(lists.size[cut], taken[cut])
    missed[never] = -np.inf
    found: Array = 1 - np.exp(lists.by_list(missed))
    return found


def mrr(lists: Lists) -> Array:
    """1 / the place of the first relevant row, from 1; its mean over the orders of ties.

    Of t rows of one score with r relevant the first relevant is the j-th with C(t - j, r - 1) / C(t, r).
    """
    has = np.flatnonzero(lists.relevant > 0)
    at = np.unique(lists.list_of[has], return_index=True)[1]
    first = np.zeros(len(lists.size), dtype=bool)
    first[has[at]] = True
    rows = np.flatnonzero(first[lists.block])
    block = lists.block[rows]
    size, relevant = lists.size[block], lists.relevant[block]
    nth = lists.place[rows] - lists.begins[block] + 1
    able = size - nth >= relevant - 1
    rows, block, size, relevant, nth = rows[able], block[able], size[able], relevant[able], nth[able]
    chance = np.exp(_choose(size - nth, relevant - 1) - _choose(size, relevant))
    return np.bincount(
        lists.list_of[block], weights=chance / (lists.place[rows] + 1), minlength=len(lists.rows)
    )


def gauc(lists: Lists) -> Array:
    """The AUC within each list: the share of its pairs of labels 1 and 0 that are in order, ties half."""
    positives = lists.by_list(lists.relevant)
    below = lists.rows[lists.list_of] - lists.begins - lists.size  # rows of the list with lower scores
    rank = below + (lists.size + 1) / 2
    pairs = positives * (lists.rows - positives)
    above = lists.by_list(lists.relevant * rank) - positives * (positives + 1) / 2
    found: Array = above / np.maximum(pairs, 1)
    return found


def compare(
    measure: Callable[[Lists], Array],
    labels: Array,
    before: Array,
    after: Array,
    groups: Array,
    *,
    both: bool = False,
) -> Paired:
    """The mean over lists of what `measure` gives each, before and after; lists without a relevant row are left out.

    With `both` lists without any other row are left out too, and lists weigh as many rows as they have.
    Raises `MeasurementError` where none is left.
    """
    make = partial(Lists.of, groups, gains=labels)
    first = make(scores=before)
    positives = first.by_list(first.relevant)
    counts = (positives > 0) & (positives < first.rows) if both else positives > 0
    if not counts.any():
        needs = "rows of both labels" if both else "a relevant row"
        raise MeasurementError(f"none of {len(counts):,} groups has {needs}: nothing can be ranked")
    was, now = measure(first)[counts], measure(make(scores=after))[counts]
    weights = first.rows[counts].astype(np.float64) if both else np.ones(len(was))
    change = was - now
    value, error = mean_change(change, weights)
    few = None if np.array_equal(before, after) else rare(change, weights, error)
    return Paired(
        float(np.average(was, weights=weights)),
        float(np.average(now, weights=weights)),
        value,
        error,
        len(was),
        few,
        len(was),
        len(counts) - len(was),
        0.5 if few is None else 1.0,
    )


def _choose(n: Array, k: Array) -> Array:
    """ln C(n, k)."""
    found: Array = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return found
