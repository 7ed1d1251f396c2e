"""What a model lost of a metric, on the same rows before and after, and whether that is certain enough to say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm

from ..errors import MeasurementError
from .metrics import metric_named
from .paired import ONE_SIDED, Array

__all__ = ["FEWEST", "SIZE", "Array", "Loss", "loss_of"]

Verdict = Literal["certified", "not certifiable", "exceeded"]

SIZE = 0.05
"""How often a verdict may be wrong."""
FEWEST = 100
"""Rows of each label, or groups of rows, below which no bound is believed: groups are what is independent where there are any."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Loss:
    """What was lost of one metric: `value` is absolute and positive where the fast model is worse.

    `error` is the standard error of `value` over the same rows before and after, None where the metric came as one number
    per model. Where the bounds of the loss are quantiles of resamples, `margins` says how far below and above `value` they are.
    `rarest` counts the rows of the rarer label, or the groups where they are fewer: what has to be enough for a bound to be believed.
    `groups` counts the groups that the metric is over, None without, and `left_out` those of which nothing can be said.
    With n times the rows margins are n^-`shrinks` of what they are.
    """

    metric: str
    before: float
    after: float
    value: float
    error: float | None
    rows: int
    rarest: int
    margins: tuple[float, float] | None = None
    groups: int | None = None
    left_out: int = 0
    shrinks: float = 0.5

    @property
    def upper(self) -> float | None:
        """The one-sided 95 % bound of the loss."""
        return None if self.error is None else self.value + self._margins[1]

    @property
    def lower(self) -> float | None:
        """The one-sided 95 % bound from below."""
        return None if self.error is None else self.value - self._margins[0]

    @property
    def _margins(self) -> tuple[float, float]:
        error = ONE_SIDED * (self.error or 0.0)
        return (error, error) if self.margins is None else self.margins

    @property
    def few(self) -> bool:
        """Whether there are too few rows of one label, or groups, to believe a bound."""
        return self.rarest < FEWEST

    def chance(self, allowed: float) -> float:
        """How likely so large a loss is by chance where no more than `allowed` is lost, one-sided; normal, with the lower bound it has."""
        below = self._margins[0]
        if not below:
            return 0.0 if self.error is not None and self.value > allowed else 1.0
        return float(norm.sf((self.value - allowed) / below * ONE_SIDED))

    def verdict(self, allowed: float) -> Verdict:
        """Whether the loss is within `allowed` for certain (non-inferiority: its bound is), or clearly beyond."""
        lower, upper = self.lower, self.upper
        if lower is not None and lower > allowed:
            return "exceeded"
        # Asked so that what is not a number is not certified.
        within = upper is not None and upper <= allowed
        return "certified" if within and not self.few else "not certifiable"

    def needed(self, allowed: float) -> int | None:
        """How many rows, about, would certify this loss; None where no number would."""
        if self.error is None or not self.value < allowed:
            return None
        times = float((self._margins[1] / (allowed - self.value)) ** (1 / self.shrinks))
        by_error = self.rows * times
        by_label = self.rows * FEWEST / max(self.rarest, 1)
        return math.ceil(max(float(by_error), by_label))


def loss_of(metric: str, labels: Array, before: Array, after: Array, groups: Array | None = None) -> Loss:
    """The loss of `metric` between scores `before` and `after`, each (N,), on rows with `labels` (N,) and `groups` (N,), integers from 0.

    `metric` is one of `METRICS`, or as "ndcg@10". Labels are 0 and 1, or any relevance from 0 for metrics of lists. Rows of one group
    are a list of those, and not independent of each other for all. Cost: O(N log N), and 0.1 s for what is resampled.

    Raises `MeasurementError` for an unknown metric, scores that are not finite or no probabilities where they have to be, sizes that do not
    agree, none at all, labels and groups of which nothing can be said.

    Example:
        >>> labels = np.tile([0, 1], 500)
        >>> scores = np.random.default_rng(0).normal(labels)
        >>> loss = loss_of("auc", labels, scores, scores + 1e-9)
        >>> loss.value, loss.verdict(2e-4)
        (0.0, 'certified')
        >>> loss_of("mrr", labels, scores, -scores, groups=np.arange(1000) // 10).verdict(0.1)
        'exceeded'
    """
    known = metric_named(metric)
    labels, before, after = (np.asarray(x, dtype=np.float64).ravel() for x in (labels, before, after))
    if not len(labels) == len(before) == len(after):
        raise MeasurementError(
            f"{len(labels)} labels, {len(before)} scores before and {len(after)} after: one of each for every row"
        )
    if not len(labels):
        raise MeasurementError(f"{metric}: there are no rows")
    if groups is not None:
        groups = np.unique(groups, return_inverse=True)[1].ravel()
        if len(groups) != len(labels):
            raise MeasurementError(f"{len(groups)} groups for {len(labels)} labels: one for every row")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise MeasurementError("scores are not finite: clean the rows that are evaluated")
    if known.probabilities:
        before, after = _probability(metric, before), _probability(metric, after)
    try:
        found = known.compare(labels, before, after, groups)
    except MeasurementError as error:
        raise MeasurementError(f"{metric}: {error}") from error
    return Loss(
        metric,
        found.before,
        found.after,
        found.value,
        found.error,
        len(labels),
        found.units,
        found.margins,
        found.groups,
        found.left_out,
        found.shrinks,
    )


def _probability(metric: str, scores: Array) -> Array:
    """The scores, rounding beyond 0 and 1 cut off. Raises `MeasurementError` where they are no probabilities."""
    low, high = float(scores.min()), float(scores.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise MeasurementError(
            f"{metric} takes probabilities, and scores are between {low:.4g} and {high:.4g}: give output=... if they are another output, or apply sigmoid in the model"
        )
    return np.clip(scores, 0.0, 1.0)
