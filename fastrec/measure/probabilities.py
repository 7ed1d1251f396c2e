"""How far probabilities are from what happens: expected calibration error, and the ratio of their mean to that of labels.

Both are absolute values, of which neither an error nor a plain bootstrap certifies anything near 0: there half of all samples show
a gain where there is a loss. Their bounds allow for the sign that is not known.
"""

from __future__ import annotations

import numpy as np

from ..errors import MeasurementError
from .paired import Array, lots, margins, resampled

__all__ = ["BINS", "calibration", "ece"]

BINS = 15
_CLEAR = 4.0  # standard errors beyond which a gap has its sign for sure, in all bins at once
_EXPECTED = 5.0  # rows of either label that a bin ought to have for that

Found = tuple[float, float, float, float, tuple[float, float]]
"""Before, after, what was lost, its standard error, its margins."""


def ece(labels: Array, before: Array, after: Array, groups: Array | None) -> Found:
    """sum_b |sum_{i in b} (p_i - y_i)| / N over 15 bins of equal mass, those of each set of scores by itself.

    Let g_b and h_b be the gaps of a bin before and after. Where the sign s of g_b is sure, |h_b| - s g_b is lost, elsewhere
    |h_b - g_b| at most, which rows of the same labels say well. The bounds are quantiles of the sum over resamples, at fixed bins.
    """
    count = len(labels)
    same = np.array_equal(before, after)
    bins = [_bins(scores) for scores in (before, after)]
    gaps = [
        np.bincount(at, weights=scores - labels, minlength=BINS) / count
        for at, scores in zip(bins, (before, after), strict=True)
    ]
    was, now = (float(np.abs(gap).sum()) for gap in gaps)
    if same:
        return was, now, 0.0, 0.0, (0.0, 0.0)
    lot = lots(groups, count)
    each = int(lot.max()) + 1
    sums = [
        np.bincount(lot * BINS + at, weights=scores - labels, minlength=each * BINS).reshape(each, BINS)
        for at, scores in zip(bins, (before, after), strict=True)
    ]
    drawn = resampled(np.concatenate([*sums, np.bincount(lot)[:, None]], axis=1))
    first, second = (drawn[:, k * BINS : (k + 1) * BINS] / drawn[:, -1:] for k in (0, 1))
    clear = _clear(bins[0], before, gaps[0], first.std(axis=0))
    sign, moved = np.sign(gaps[0]), second - first
    unsure = np.where(clear, 0.0, np.abs(moved)).sum(axis=1)
    most = np.where(clear, np.abs(second) - sign * first, 0.0).sum(axis=1) + unsure
    least = np.where(clear, sign * moved, 0.0).sum(axis=1) - unsure
    error = float((np.abs(second) - np.abs(first)).sum(axis=1).std())
    return was, now, now - was, error, margins(now - was, least, most)


def calibration(labels: Array, before: Array, after: Array, groups: Array | None) -> Found:
    """|sum p / sum y - 1|, and quantiles of what is lost of it over resamples.

    What is lost is monotone in the ratio before, the two moving together, so its quantiles are bounds although it is no smooth function.
    Raises `MeasurementError` where no label is 1.
    """
    happened = float(labels.sum())
    if not happened:
        raise MeasurementError("no label is 1: mean prediction / mean label has no value")
    was, now = (abs(float(scores.sum()) / happened - 1) for scores in (before, after))
    if np.array_equal(before, after):
        return was, now, 0.0, 0.0, (0.0, 0.0)
    lot = lots(groups, len(labels))
    sums = np.stack([np.bincount(lot, weights=one) for one in (before, after, labels)], axis=1)
    drawn = resampled(sums)
    first, second = (np.abs(drawn[:, k] / np.maximum(drawn[:, 2], 1) - 1) for k in (0, 1))
    lost = second - first
    return was, now, now - was, float(lost.std()), margins(now - was, lost, lost)


def _bins(scores: Array) -> Array:
    """The bin of each score, 0 to 14, between quantiles of the scores: each has as many rows, and equal scores one bin.

    Of equal width nearly all rows of a click model would be in the first.
    """
    edges = np.percentile(scores, np.linspace(0, 100, BINS + 1)[1:-1])
    found: Array = np.searchsorted(edges, scores, side="left")
    return found


def _clear(at: Array, scores: Array, gap: Array, error: Array) -> Array:
    """Of which bins the gap's sign is sure: its error is that of resampling, or that of a calibrated bin where that is more."""
    expected = np.bincount(at, weights=scores, minlength=BINS)
    against = np.bincount(at, weights=1 - scores, minlength=BINS)
    binomial = np.sqrt(np.bincount(at, weights=scores * (1 - scores), minlength=BINS)) / len(scores)
    enough = np.minimum(expected, against) >= _EXPECTED
    found: Array = enough & (np.abs(gap) > _CLEAR * np.maximum(error, binomial))
    return found
