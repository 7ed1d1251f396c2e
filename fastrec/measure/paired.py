"""How surely a metric moved between two sets of scores of the same rows: errors of means, and resampling where there is no formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

__all__ = [
    "ONE_SIDED",
    "RESAMPLES",
    "Array",
    "Paired",
    "lots",
    "mean_change",
    "rare",
    "resampled",
    "summed",
]

Array = npt.NDArray[Any]

ONE_SIDED = 1.6449
"""The standard normal quantile of 95 %."""
RESAMPLES = 1000
_LOTS = 2000  # units that are drawn; of so many the error of an error is 1.6 %
_SEEN = 10  # changes below which their number says more than their spread
_TINY = 1e-12


@dataclass(frozen=True)
class Paired:
    """A metric before and after, what was lost (`value`, positive where less is worth), and the standard error of that.

    `margins` are how far below and above `value` its one-sided 95 % bounds are, where they are not multiples of `error`.
    `units` counts what is independent of each other and decides whether a bound is believed; `groups` those that count, of
    those that were given, `left_out` those that say nothing. Margins shrink with so many rows as n^-`shrinks`.
    """

    before: float
    after: float
    value: float
    error: float
    units: int
    margins: tuple[float, float] | None = None
    groups: int | None = None
    left_out: int = 0
    shrinks: float = 0.5


def summed(values: Array, groups: Array | None) -> Array:
    """The sums of `values` (N, ...) of each group (N,), or the values where every row stands alone."""
    if groups is None:
        return values
    flat = values.reshape(len(values), -1)
    count = int(groups.max()) + 1
    columns = [np.bincount(groups, weights=column, minlength=count) for column in flat.T]
    return np.stack(columns, axis=1).reshape(count, *values.shape[1:])


def mean_change(
    change: Array, weights: Array | None = None, groups: Array | None = None
) -> tuple[float, float]:
    """A mean of paired differences (N,), weighted or not, and its standard error, rows of one group not independent.

    v = sum w d / sum w, error^2 = C / (C - 1) sum_c (sum_{i in c} w_i (d_i - v))^2 / (sum w)^2 over C groups, or rows: what
    resampling whole groups comes to (the linearised ratio), without its noise. Without weights and groups it is sd(d) / sqrt(N).
    """
    heavy = np.ones(len(change)) if weights is None else weights
    total = heavy.sum()
    value = float((heavy * change).sum() / total)
    off = summed(heavy * (change - value), groups)
    count = len(off)
    return value, float(np.sqrt(count / max(count - 1, 1) * (off**2).sum()) / total)


def rare(change: Array, weights: Array, error: float) -> tuple[float, float] | None:
    """Margins of a mean of changes within [-1, 1] of which fewer than 10 are not 0; None where more are.

    Of m changes seen there may be (0.95 quantile of chi2(2 m + 2)) / 2 (Garwood, 1936), each a loss of all: with none in n,
    3.0 / n may be lost. A spread of so few says nothing of those that were not seen. n is (sum w)^2 / sum w^2.
    """
    seen = int((np.abs(change) > _TINY).sum())
    if seen >= _SEEN:
        return None
    count = weights.sum() ** 2 / (weights**2).sum()
    margin = max(ONE_SIDED * error, float(chi2.ppf(0.95, 2 * seen + 2) / 2 - seen) / float(count))
    return margin, margin


def lots(groups: Array | None, count: int) -> Array:
    """For each of `count` rows the lot that it is drawn with, (N,): its group's, or its own.

    More than 2,000 groups are put together into so many lots at random, always the same, whose sums are as independent.
    """
    units = count if groups is None else int(groups.max()) + 1
    of = np.arange(units)
    if units > _LOTS:
        of = np.random.default_rng(0).permutation(units) % _LOTS
    found: Array = of if groups is None else of[groups]
    return found


def resampled(sums: Array, seed: int = 0) -> Array:
    """The sums of 1,000 resamples of lots, (1000, K), of what each lot adds to them, (L, K).

    Lots are drawn with replacement, always the same for one seed. Cost: 1,000 L K and L draws a resample, some 50 ms for 2,000.
    """
    rng = np.random.default_rng(seed)
    count = len(sums)
    drawn = rng.integers(0, count, (RESAMPLES, count)) + count * np.arange(RESAMPLES)[:, None]
    times = np.bincount(drawn.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count)
    found: Array = times.astype(np.float64) @ sums
    return found
