"""How far probabilities are from what happens: expected calibration error, and the ratio of their mean to that of labels.

Both are sums of |gap|, of which neither an error nor a plain bootstrap certifies anything where gaps are near 0: there half of
all samples show a gain where there is a loss. Let g be a gap before and h the same gap after. Where rows say the sign s of g for
sure, |h| - s g is lost; elsewhere |h - g| at most, which rows of the same labels say well. The bounds of the sum are those values, and
how far quantiles of resamples are from their mean.
"""

from __future__ import annotations

import numpy as np

from ..errors import MeasurementError
from .paired import Array, lots, resampled

__all__ = ["BINS", "calibration", "ece"]

BINS = 15
_CLEAR = 4.0  # standard errors beyond which a gap has its sign for sure, in all bins at once
_EXPECTED = 5.0  # rows of either label that a bin ought to have for that

Estimates = tuple[float, float, float, float, tuple[float, float]]
"""Before, after, what was lost, its standard error, its margins."""


def ece(labels: Array, before: Array, after: Array, groups: Array | None) -> Estimates:
    """sum_b |sum_{i in b} (p_i - y_i)| / N over 15 bins of equal mass, those of each set of scores by itself.

    Resamples keep the bins. Cost: O(N log N), and some 0.1 s.
    """
    bins, moved = [_bins(scores) for scores in (before, after)], [before - labels, after - labels]
    lot = lots(groups, len(labels))
    each = int(lot.max()) + 1
    sums = [
        np.bincount(lot * BINS + at, weights=by, minlength=each * BINS).reshape(each, BINS)
        for at, by in zip(bins, moved, strict=True)
    ]
    return _found(bins[0], before, sums[0], sums[1], np.bincount(lot), np.array_equal(before, after))


def calibration(labels: Array, before: Array, after: Array, groups: Array | None) -> Estimates:
    """|sum p / sum y - 1|: one bin, of which the gap is in parts of the labels. Raises `MeasurementError` where no label is 1."""
    if not labels.any():
        raise MeasurementError("no label is 1: mean prediction / mean label has no value")
    lot = lots(groups, len(labels))
    one = np.zeros(len(labels), dtype=np.int64)
    first, second = (np.bincount(lot, weights=p - labels)[:, None] for p in (before, after))
    happened = np.bincount(lot, weights=labels)
    return _found(one, before, first, second, happened, np.array_equal(before, after))


def _found(at: Array, scores: Array, before: Array, after: Array, over: Array, same: bool) -> Estimates:
    """What is found of sums of gaps of each lot before and after, (L, bins), over the sums of what they are parts of, (L,).

    `at` and `scores` (N,) are the bin of each row and its score, before.
    """
    bins, total = before.shape[1], over.sum()
    first, second = before.sum(axis=0) / total, after.sum(axis=0) / total
    was, now = float(np.abs(first).sum()), float(np.abs(second).sum())
    if same:
        return was, now, 0.0, 0.0, (0.0, 0.0)
    drawn = resampled(np.concatenate([before, after, over[:, None]], axis=1))
    part = np.maximum(drawn[:, -1:], 1)
    firsts, seconds = drawn[:, :bins] / part, drawn[:, bins:-1] / part
    # The error of a gap is that of resampling, or that of a calibrated bin where that is more.
    expected, against, spread = (
        np.bincount(at, weights=weights, minlength=bins)
        for weights in (scores, 1 - scores, scores * (1 - scores))
    )
    error = np.maximum(firsts.std(axis=0), np.sqrt(spread) / total)
    reach = np.where(np.minimum(expected, against) >= _EXPECTED, _CLEAR * error, np.inf)
    clear = np.abs(first) > reach
    sign, largest = np.sign(first), np.abs(first) + reach
    most, mosts = (_most(clear, sign, g, h) for g, h in ((first, second), (firsts, seconds)))
    least, leasts = (_least(clear, sign, largest, g, h) for g, h in ((first, second), (firsts, seconds)))
    lost = now - was
    above = float(most - lost + np.quantile(mosts, 0.95) - mosts.mean())
    below = float(lost - least + leasts.mean() - np.quantile(leasts, 0.05))
    spread_of_lost = float((np.abs(seconds) - np.abs(firsts)).sum(axis=1).std())
    return was, now, lost, spread_of_lost, (max(0.0, below), max(0.0, above))


def _most(clear: Array, sign: Array, before: Array, after: Array) -> Array:
    """What may have been lost at most, of gaps (..., bins)."""
    found: Array = np.where(clear, np.abs(after) - sign * before, np.abs(after - before)).sum(axis=-1)
    return found


def _least(clear: Array, sign: Array, largest: Array, before: Array, after: Array) -> Array:
    """What was lost at least: of a gap that was no larger than `largest` and moved by d, |d| - 2 largest, and never less than -|d|."""
    moved = after - before
    unsure = np.maximum(-np.abs(moved), np.abs(moved) - 2 * largest)
    found: Array = np.where(clear, sign * moved, unsure).sum(axis=-1)
    return found


def _bins(scores: Array) -> Array:
    """The bin of each score, 0 to 14, between quantiles of the scores: each has as many rows, and equal scores are in one bin.

    Of equal width nearly all rows of a click model would be in the first.
    """
    edges = np.sort(scores)[np.arange(1, BINS) * (len(scores) - 1) // BINS]
    found: Array = np.searchsorted(edges, scores, side="left")
    return found
