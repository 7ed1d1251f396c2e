"""The metrics that are known: what each is, which way it is better, and how surely it moved on the same rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from scipy.stats import rankdata

from ..errors import MeasurementError
from . import rankings
from .paired import Array, Paired, mean_change, summed
from .probabilities import BINS, calibration, ece

__all__ = ["LOWER_IS_BETTER", "METRICS", "Metric", "metric_named", "metrics_named"]

_LEAST = 1e-7

Compare = Callable[[Array, Array, Array, Array | None], Paired]
"""Of labels, scores before and after, and groups 0 ... G - 1, each (N,)."""


@dataclass(frozen=True)
class Metric:
    """A metric: its name, which way it is better, and how two sets of scores are compared.

    `lists` says that it is a mean over groups, which have to be given; of others groups are rows that are not independent.
    `probabilities` says that scores have to lie in [0, 1], `graded` that labels may be any relevance, 0 or above.
    """

    name: str
    better: Literal["higher", "lower"]
    compare: Compare
    lists: bool = False
    probabilities: bool = False
    graded: bool = False


def metric_named(name: str) -> Metric:
    """The metric of this name, as "auc" or "ndcg@10". Raises `MeasurementError` for an unknown one."""
    found = _read(name)
    if found is None:
        raise MeasurementError(f"unknown metric {name!r:.80}; known are {_KNOWN}")
    return found


def metrics_named(names: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics of these names. Raises `MeasurementError` for unknown ones and for none."""
    given = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in given if _read(name) is None]
    if unknown or not given:
        raise MeasurementError(f"unknown metrics {unknown!r:.200}; known are {_KNOWN}")
    return tuple(metric_named(name) for name in given)


def _read(name: object) -> Metric | None:
    if not isinstance(name, str):
        return None
    at = re.fullmatch(r"(ndcg|recall|hit)@([1-9][0-9]{0,8})", name)
    if at:
        return _list_metric(name, partial(_AT[at[1]], k=int(at[2])))
    return None if name.endswith("@K") else METRICS.get(name)


def _auc(labels: Array, before: Array, after: Array, groups: Array | None) -> Paired:
    """The share of pairs of labels 1 and 0 that are in order, ties half; with errors by DeLong, or Obuchowski where rows are of groups."""
    positive = labels > 0.5
    count, rest = int(positive.sum()), int((~positive).sum())
    if not count or not rest:
        raise MeasurementError(f"all {len(labels)} labels are alike: nothing can be ranked")
    found = []
    for scores in (before, after):
        ranks = rankdata(scores)
        # Of each positive: the share of negatives below it; of each negative: that of positives above.
        below = (ranks[positive] - rankdata(scores[positive])) / rest
        above = 1 - (ranks[~positive] - rankdata(scores[~positive])) / count
        found.append((below, above))
    (below, above), (below_now, above_now) = found
    was, now = float(below.mean()), float(below_now.mean())
    moved = np.zeros((len(labels), 2))
    moved[positive, 0] = (below - below_now - (was - now)) / count
    moved[~positive, 1] = (above - above_now - (was - now)) / rest
    parts = summed(moved, groups)
    had = _groups_of_each(positive, groups)
    each = [n / max(n - 1, 1) * float((part**2).sum()) for n, part in zip(had, parts.T, strict=True)]
    # What rows of both labels in one group have in common; none where each row stands alone.
    shared = 2 * len(parts) / max(len(parts) - 1, 1) * float(parts.prod(axis=1).sum())
    error = float(np.sqrt(max(0.0, sum(each) + shared)))
    return _pointwise(labels, groups, was, now, was - now, error)


def _logloss(labels: Array, before: Array, after: Array, groups: Array | None) -> Paired:
    """The mean of -ln p(label), p at least 1e-7."""
    was, now = (-np.log(np.clip(np.where(labels > 0.5, p, 1 - p), _LEAST, 1)) for p in (before, after))
    return _pointwise(labels, groups, was.mean(), now.mean(), *mean_change(now - was, groups=groups))


def _brier(labels: Array, before: Array, after: Array, groups: Array | None) -> Paired:
    """The mean of (p - label)^2."""
    was, now = ((p - labels) ** 2 for p in (before, after))
    return _pointwise(labels, groups, was.mean(), now.mean(), *mean_change(now - was, groups=groups))


def _ece(labels: Array, before: Array, after: Array, groups: Array | None) -> Paired:
    # As many rows in each bin as are asked for of each label.
    return _pointwise(labels, groups, *ece(labels, before, after, groups), most=len(labels) // BINS)


def _calibration(labels: Array, before: Array, after: Array, groups: Array | None) -> Paired:
    return _pointwise(labels, groups, *calibration(labels, before, after, groups))


def _pointwise(
    labels: Array,
    groups: Array | None,
    before: float,
    after: float,
    value: float,
    error: float,
    margins: tuple[float, float] | None = None,
    most: int | None = None,
) -> Paired:
    """What was found of rows, with how many there are of the rarer label, or groups that have it."""
    positive = labels > 0.5
    units = min(int(positive.sum()), int((~positive).sum()), *_groups_of_each(positive, groups))
    units = units if most is None else min(units, most)
    given = None if groups is None else int(groups.max()) + 1
    return Paired(float(before), float(after), value, error, units, margins, given)


def _groups_of_each(positive: Array, groups: Array | None) -> tuple[int, int]:
    """How many groups have rows of label 1, and of label 0; how many rows without groups."""
    if groups is None:
        return int(positive.sum()), int((~positive).sum())
    return len(np.unique(groups[positive])), len(np.unique(groups[~positive]))


def _lists(
    labels: Array,
    before: Array,
    after: Array,
    groups: Array | None,
    *,
    measure: Callable[[rankings.Lists], Array],
    both: bool,
) -> Paired:
    if groups is None:
        raise MeasurementError(
            "it is a mean over groups: give evaluator(groups=...), a value for each row, the user or the request"
        )
    return rankings.compare(measure, labels, before, after, groups, both=both)


def _list_metric(name: str, measure: Callable[[rankings.Lists], Array], *, both: bool = False) -> Metric:
    return Metric(name, "higher", partial(_lists, measure=measure, both=both), lists=True, graded=not both)


_AT: dict[str, Callable[..., Array]] = {"ndcg": rankings.ndcg, "recall": rankings.recall, "hit": rankings.hit}

METRICS: dict[str, Metric] = {
    one.name: one
    for one in (
        Metric("auc", "higher", _auc),
        _list_metric("gauc", rankings.gauc, both=True),
        Metric("logloss", "lower", _logloss, probabilities=True),
        Metric("brier", "lower", _brier, probabilities=True),
        Metric("ece", "lower", _ece, probabilities=True),
        Metric("calibration", "lower", _calibration, probabilities=True),
        *(_list_metric(f"{name}@K", partial(measure, k=1)) for name, measure in _AT.items()),
        _list_metric("mrr", rankings.mrr),
    )
}
"""Every metric by its name, those of the first K rows of a list as "ndcg@K"."""

_KNOWN = f"{', '.join(METRICS)}, with any whole number above 0 for K"

LOWER_IS_BETTER = frozenset(one.name for one in METRICS.values() if one.better == "lower") | frozenset(
    ("log_loss", "bce", "mse", "rmse", "mae", "loss")
)
"""Metrics of which less is better, by the names that other libraries give them too; of any other, more is."""
