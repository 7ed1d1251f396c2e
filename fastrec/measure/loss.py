"""What a model lost of a metric, on the same rows before and after, and whether that is certain enough to say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from ..errors import MeasurementError

__all__ = ["FEWEST", "LOWER_IS_BETTER", "METRICS", "SIZE", "Loss", "loss_of"]

Array = npt.NDArray[Any]
Verdict = Literal["certified", "not certifiable", "exceeded"]

SIZE = 0.05
"""How often a verdict may be wrong."""
FEWEST = 100
"""Rows of each label below which no normal approximation is believed."""
_ONE_SIDED = 1.6449  # standard normal quantile of 95 %
_TINY = 1e-7


@dataclass(frozen=True)
class Loss:
    """What was lost of one metric: `value` is absolute and positive where the fast model is worse.

    `error` is the standard error of `value` over the same rows before and after, None where the metric came as one number
    per model; `rarest` counts the rows of the rarer label.
    """

    metric: str
    before: float
    after: float
    value: float
    error: float | None
    rows: int
    rarest: int

    @property
    def upper(self) -> float | None:
        """The one-sided 95 % bound of the loss."""
        return None if self.error is None else self.value + _ONE_SIDED * self.error

    @property
    def few(self) -> bool:
        """Whether there are too few rows of one label to believe a bound."""
        return self.rarest < FEWEST

    def chance(self, allowed: float) -> float:
        """How likely so large a loss is by chance where no more than `allowed` is lost, one-sided."""
        if not self.error:
            return 0.0 if self.error is not None and self.value > allowed else 1.0
        return float(norm.sf((self.value - allowed) / self.error))

    def verdict(self, allowed: float) -> Verdict:
        """Whether the loss is within `allowed` for certain (non-inferiority: its bound is), or clearly beyond."""
        if self.error is not None and self.value - _ONE_SIDED * self.error > allowed:
            return "exceeded"
        bound = self.upper
        if bound is None or bound > allowed or self.few:
            return "not certifiable"
        return "certified"

    def needed(self, allowed: float) -> int | None:
        """How many rows, about, would certify this loss; None where no number would."""
        if self.error is None or self.value >= allowed:
            return None
        by_error = self.rows * (_ONE_SIDED * self.error / (allowed - self.value)) ** 2
        by_label = self.rows * FEWEST / max(self.rarest, 1)
        return math.ceil(max(by_error, by_label))


def loss_of(metric: str, labels: Array, before: Array, after: Array) -> Loss:
    """The loss of `metric` between scores `before` and `after`, each (N,), on rows with `labels` (N,) of 0 and 1.

    `auc`: the area under the ROC curve, its error by DeLong, DeLong and Clarke-Pearson (1988), equation 6.
    `logloss`: the mean of -log p(label), its error that of a mean of paired differences. Cost: O(N log N).

    Raises `MeasurementError` for an unknown metric, scores that are not finite, sizes that do not agree, none at all, and
    for `auc` labels of one class.

    Example:
        >>> labels = np.tile([0, 1], 500)
        >>> scores = np.random.default_rng(0).normal(labels)
        >>> loss = loss_of("auc", labels, scores, scores + 1e-9)
        >>> loss.value, loss.verdict(2e-4)
        (0.0, 'certified')
    """
    if metric not in METRICS:
        raise MeasurementError(f"unknown metric {metric!r}; known are {sorted(METRICS)}")
    labels, before, after = (np.asarray(x, dtype=np.float64).ravel() for x in (labels, before, after))
    if not len(labels) == len(before) == len(after):
        raise MeasurementError(
            f"{len(labels)} labels, {len(before)} scores before and {len(after)} after: one of each for every row"
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise MeasurementError("scores are not finite: clean the rows that are evaluated")
    positive = labels > 0.5
    rarest = int(min(positive.sum(), (~positive).sum()))
    if not len(labels) or (not rarest and metric == "auc"):
        raise MeasurementError(f"all {len(labels)} labels are alike: nothing can be ranked")
    was, now, value, error = METRICS[metric](positive, before, after)
    return Loss(metric, was, now, value, error, len(labels), rarest)


def _auc(positive: Array, before: Array, after: Array) -> tuple[float, float, float, float]:
    count, rest = int(positive.sum()), int((~positive).sum())
    found = []
    for scores in (before, after):
        ranks = rankdata(scores)
        # Of each positive: the share of negatives below it; of each negative: that of positives above.
        below = (ranks[positive] - rankdata(scores[positive])) / rest
        above = 1 - (ranks[~positive] - rankdata(scores[~positive])) / count
        found.append((below, above))
    (below, above), (below_now, above_now) = found
    variance = (below - below_now).var(ddof=min(1, count - 1)) / count
    variance += (above - above_now).var(ddof=min(1, rest - 1)) / rest
    was, now = float(below.mean()), float(below_now.mean())
    return was, now, was - now, float(np.sqrt(variance))


def _logloss(positive: Array, before: Array, after: Array) -> tuple[float, float, float, float]:
    was, now = (-np.log(np.clip(np.where(positive, p, 1 - p), _TINY, 1)) for p in (before, after))
    change = now - was
    error = float(change.std(ddof=min(1, len(change) - 1)) / np.sqrt(len(change)))
    return float(was.mean()), float(now.mean()), float(change.mean()), error


METRICS: dict[str, Callable[[Array, Array, Array], tuple[float, float, float, float]]] = {
    "auc": _auc,
    "logloss": _logloss,
}
"""Each metric, as what it was, is, what was lost and how surely, of positives and two sets of scores."""

LOWER_IS_BETTER = frozenset(("logloss", "log_loss", "bce", "ece", "mse", "rmse", "mae", "brier", "loss"))
"""Metrics of which less is better; of any other, more is."""
