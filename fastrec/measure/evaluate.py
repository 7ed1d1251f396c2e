"""Scores of a model over labelled batches, kept so that two models are compared row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MeasurementError
from ..inputs import batch_call
from .loss import Array, Loss, loss_of
from .metrics import metric_named, metrics_named
from .segments import Segment, SegmentLoss, read_segments, values_of

__all__ = ["Evaluator", "evaluator"]


class Evaluator:
    """Calls a model on every batch, and gives its metrics: `evaluate(model) -> {"auc": 0.79}`.

    `losses(before, after)` compares the scores of two models pair by pair, `by_segment` within each segment, `split` gives two
    evaluators of disjoint rows; made by `evaluator`. `rows` are the places of its rows among those of the batches, None for all.
    """

    def __init__(
        self,
        batches: Sequence[Any],
        labels: Array,
        metrics: Sequence[str],
        output: str | int | None = None,
        segments: Sequence[Segment] = (),
        groups: Array | None = None,
    ) -> None:
        self.batches, self.labels, self.metrics = tuple(batches), labels, tuple(metrics)
        self.output, self.segments, self.groups = output, tuple(segments), groups
        self.rows: Array | None = None
        self._total = len(labels)
        # How many scores each batch gives, known once a model gave them all; one list for all parts of a split.
        self._each: list[int] = []

    def __call__(self, model: Callable[..., Any]) -> dict[str, float]:
        """The metrics of one model."""
        return self.of(self.scores(model))

    def of(self, scores: Array) -> dict[str, float]:
        """The metrics of these scores (N,)."""
        return {name: loss.before for name, loss in self.losses(scores, scores).items()}

    def scores(self, model: Callable[..., Any]) -> Array:
        """The model's scores (N,), all batches end to end. Raises `MeasurementError` where it gives another number."""
        wanted = self._wanted()
        with torch.no_grad():
            parts = [
                _scores(_called(model, batch), self.output) if wants else np.zeros(self._each[place])
                for place, (batch, wants) in enumerate(zip(self.batches, wanted, strict=True))
            ]
        scores = np.concatenate(parts)
        if len(scores) != self._total:
            raise MeasurementError(
                f"the model gave {len(scores)} scores for {self._total} labels: one for every row is expected"
            )
        self._each[:] = [len(part) for part in parts]
        return scores if self.rows is None else scores[self.rows]

    def losses(self, before: Array, after: Array) -> dict[str, Loss]:
        """What was lost of each metric between two sets of scores."""
        return {name: loss_of(name, self.labels, before, after, self.groups) for name in self.metrics}

    def by_segment(self, before: Array, after: Array) -> list[SegmentLoss]:
        """What was lost of each metric among the rows of each segment."""
        return [
            SegmentLoss(
                one.grouping, one.name, name, len(one.rows), self._within(name, one.rows, before, after)
            )
            for one in self.segments
            for name in self.metrics
        ]

    def split(self, share: float = 0.5) -> tuple[Evaluator, Evaluator]:
        """Two evaluators of disjoint rows: the first `share` of them, as to search by, and the rest, for the final check.

        What was chosen by some rows looks better there than it is, so others have to judge it. Rows stay in their order (earlier
        ones first, if they are in that of time). A group is never cut: groups go in the order of their first rows, as many as have
        about `share` of all rows. A batch with rows of both is called by both; each calls no other, once a model was called on all.

        Raises `MeasurementError` for a share that is not between 0 and 1, and where a side would have labels of one kind alone.
        """
        number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not number or not 0 < share < 1:
            raise MeasurementError(f"share is {share!r:.80}, expected a number between 0 and 1")
        count = len(self.labels)
        order = np.arange(count) if self.groups is None else _by_first(self.groups)
        before = np.bincount(order).cumsum() - np.bincount(order) / 2  # rows up to the middle of each group
        early = (before <= share * count)[order]
        return self._part(np.flatnonzero(early), "first"), self._part(np.flatnonzero(~early), "second")

    def _part(self, rows: Array, side: str) -> Evaluator:
        labels = self.labels[rows]
        positive = int((labels > 0).sum())
        if not 0 < positive < len(rows):
            raise MeasurementError(
                f"the {side} side of the split has {len(rows):,} rows, {positive:,} of them labelled above 0: each side needs labels of "
                "both kinds; give more rows or groups, another share, or rows in another order"
            )
        segments = []
        for one in self.segments:
            at = np.flatnonzero(np.isin(rows, one.rows))
            segments += [Segment(one.grouping, one.name, at)] if len(at) else []
        groups = None if self.groups is None else self.groups[rows]
        made = Evaluator(self.batches, labels, self.metrics, self.output, segments, groups)
        made.rows = rows if self.rows is None else self.rows[rows]
        made._total, made._each = self._total, self._each
        return made

    def _wanted(self) -> Array:
        """Which batches have rows of this evaluator; all while it is not known how many each has."""
        if self.rows is None or not self._each:
            return np.ones(len(self.batches), dtype=bool)
        has = np.zeros(self._total, dtype=bool)
        has[self.rows] = True
        return np.array([part.any() for part in np.split(has, np.cumsum(self._each)[:-1])])

    def _within(self, metric: str, rows: Array, before: Array, after: Array) -> Loss | None:
        labels = self.labels[rows]
        groups = None if self.groups is None else self.groups[rows]
        if not _says(metric, labels, groups):
            return None
        return loss_of(metric, labels, before[rows], after[rows], groups)


def evaluator(
    batches: Iterable[Any],
    labels: Any,
    metrics: Sequence[str] = ("auc",),
    *,
    output: str | int | None = None,
    segments: Mapping[str, Any] | None = None,
    groups: Any = None,
) -> Evaluator:
    """An `evaluate` for `compress` that certifies: it keeps rows paired.

    `batches` are batches as the model takes them, `labels` 0 or 1 for each row of all of them, `output` the key or place of the scores in
    an answer of several. `metrics` are names of `METRICS`: "auc", "gauc", "logloss", "brier", "ece", "calibration", and of lists "ndcg@10",
    "recall@10", "hit@10" (any number) and "mrr". For "logloss", "brier", "ece" and "calibration" scores are probabilities.

    `groups` gives the user or request of each row, an integer, a string or a boolean: the lists of "gauc" and the metrics of lists, and what
    is independent of each other for the errors of all. A matrix of labels (B, M), for scores (B, M), has a list in each of its rows where no
    groups are given. With metrics of lists alone labels may be any relevance, 0 or above.

    `segments` maps names of groupings to a value for each row, an integer, a string or a boolean: the rows of one value are a
    segment, whose loss is reported by itself, and bounded by `Budget(segments=...)`. `popularity` and `newcomers` make groupings.

    Raises `MeasurementError` at unknown metrics, labels that do not fit them, metrics of groups without any, without batches, and at segments
    and groups that have not one value for each row.

    Example:
        >>> import torch
        >>> evaluate = evaluator([torch.arange(4.0).reshape(4, 1)], [0, 1, 0, 1], ["auc", "mrr"], groups=["a", "a", "b", "b"])
        >>> evaluate(lambda x: x.squeeze(1))
        {'auc': 0.75, 'mrr': 1.0}
    """
    known = metrics_named(metrics)
    given = list(batches)
    if not given:
        raise MeasurementError("evaluator needs at least one batch")
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    told = _labels(labels)
    places = None
    if groups is not None:
        places = np.unique(values_of(groups, "groups"), return_inverse=True)[1]
    elif told.ndim == 2 and told.shape[1] > 1:
        places = np.repeat(np.arange(len(told)), told.shape[1])
    told = told.ravel()
    if places is not None and len(places) != len(told):
        raise MeasurementError(
            f"groups has {len(places)} values for {len(told)} labels: one for every row is expected"
        )
    if without := [metric.name for metric in known if metric.lists and places is None]:
        raise MeasurementError(
            f"{', '.join(without)} is a mean over groups: give groups=, the user or the request of each row"
        )
    _check_labels(told, [metric.name for metric in known if not metric.graded])
    named = () if segments is None else read_segments(segments, len(told))
    return Evaluator(given, told, [metric.name for metric in known], output, named, places)


def _labels(given: Any) -> Array:
    """Labels as numbers. Raises `MeasurementError` where they are none."""
    try:
        return np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise MeasurementError(
            f"labels are numbers, one for each row: 0 or 1, for metrics of lists alone any relevance from 0; got {given!r:.80} ({error})"
        ) from error


def _check_labels(labels: Array, binary: Sequence[str]) -> None:
    """Raises `MeasurementError` for labels that are neither 0 nor 1, or below 0 where no metric asks for those."""
    wrong = ~np.isin(labels, (0, 1)) if binary else ~((labels >= 0) & np.isfinite(labels))
    if wrong.any():
        row = int(wrong.argmax())
        expected = f"0 or 1 for each row, as {', '.join(binary)} takes them" if binary else "0 or above"
        raise MeasurementError(f"labels are {expected}: row {row} has {labels[row]:g}")


def _by_first(groups: Array) -> Array:
    """The groups as 0, 1, ... in the order in which they first come."""
    _, first, at = np.unique(groups, return_index=True, return_inverse=True)
    found: Array = first.argsort().argsort()[at]
    return found


def _says(metric: str, labels: Array, groups: Array | None) -> bool:
    """Whether labels of these rows leave anything to measure."""
    known, positive = metric_named(metric), labels > 0
    if known.lists and not known.graded:
        assert groups is not None
        return bool(np.intersect1d(groups[positive], groups[~positive]).size)
    if metric == "auc":
        return bool(positive.any()) and not positive.all()
    return bool(positive.any()) or not (known.lists or metric == "calibration")


def _called(model: Callable[..., Any], batch: Any) -> Any:
    # What stands for a model takes anything by its signature, and says itself how it is called.
    bind = getattr(model, "call_of", None)
    args, kwargs = bind(batch) if bind else batch_call(getattr(model, "forward", model), batch)
    return model(*args, **kwargs)


def _scores(answer: Any, output: str | int | None) -> Array:
    if output is not None and isinstance(answer, Tensor):
        raise MeasurementError(
            f"the model answers one tensor, which has no output {output!r}: leave output= out of evaluator(...)"
        )
    if output is not None and isinstance(answer, (Mapping, tuple, list)):
        try:
            answer = answer[output]  # type: ignore[index]  # a mapping takes the name, a sequence the place; others raise
        except (KeyError, IndexError, TypeError) as error:
            raise MeasurementError(f"the model's answer has no output {output!r}") from error
    if not isinstance(answer, Tensor):
        raise MeasurementError(
            f"the model answers a {type(answer).__name__}, and scores are one tensor: say which, evaluator(output=...)"
        )
    scores: Array = answer.detach().cpu().double().flatten().numpy()
    return scores
