"""Scores of a model over labelled batches, kept so that two models are compared row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MeasurementError
from ..inputs import batch_call
from .loss import METRICS, Array, Loss, loss_of
from .segments import Segment, SegmentLoss, read_segments

__all__ = ["Evaluator", "evaluator"]


class Evaluator:
    """Calls a model on every batch, and gives its metrics: `evaluate(model) -> {"auc": 0.79}`.

    `losses(before, after)` compares the scores of two models pair by pair, `by_segment` within each segment; made by `evaluator`.
    """

    def __init__(
        self,
        batches: Sequence[Any],
        labels: Array,
        metrics: Sequence[str],
        output: str | int | None = None,
        segments: Sequence[Segment] = (),
    ) -> None:
        self.batches, self.labels, self.metrics = tuple(batches), labels, tuple(metrics)
        self.output, self.segments = output, tuple(segments)

    def __call__(self, model: Callable[..., Any]) -> dict[str, float]:
        """The metrics of one model."""
        return self.of(self.scores(model))

    def of(self, scores: Array) -> dict[str, float]:
        """The metrics of these scores (N,)."""
        return {name: loss_of(name, self.labels, scores, scores).before for name in self.metrics}

    def scores(self, model: Callable[..., Any]) -> Array:
        """The model's scores (N,), all batches end to end. Raises `MeasurementError` where it gives another number."""
        with torch.no_grad():
            parts = [_scores(_called(model, batch), self.output) for batch in self.batches]
        scores = np.concatenate(parts)
        if len(scores) != len(self.labels):
            raise MeasurementError(
                f"the model gave {len(scores)} scores for {len(self.labels)} labels: one for every row is expected"
            )
        return scores

    def losses(self, before: Array, after: Array) -> dict[str, Loss]:
        """What was lost of each metric between two sets of scores."""
        return {name: loss_of(name, self.labels, before, after) for name in self.metrics}

    def by_segment(self, before: Array, after: Array) -> list[SegmentLoss]:
        """What was lost of each metric among the rows of each segment."""
        return [
            SegmentLoss(
                one.grouping, one.name, name, len(one.rows), self._within(name, one.rows, before, after)
            )
            for one in self.segments
            for name in self.metrics
        ]

    def _within(self, metric: str, rows: Array, before: Array, after: Array) -> Loss | None:
        labels = self.labels[rows]
        if metric == "auc" and (labels == labels[0]).all():
            return None
        return loss_of(metric, labels, before[rows], after[rows])


def evaluator(
    batches: Iterable[Any],
    labels: Any,
    metrics: Sequence[str] = ("auc",),
    *,
    output: str | int | None = None,
    segments: Mapping[str, Any] | None = None,
) -> Evaluator:
    """An `evaluate` for `compress` that certifies: it keeps rows paired.

    `batches` are batches as the model takes them, `labels` 0 or 1 for each row of all of them, `metrics` among "auc" and
    "logloss" (for which scores are probabilities), `output` the key or place of the scores in an answer of several.

    `segments` maps names of groupings to a value for each row, an integer, a string or a boolean: the rows of one value are a
    segment, whose loss is reported by itself, and bounded by `Budget(segments=...)`. `popularity` and `newcomers` make groupings.

    Raises `MeasurementError` at unknown metrics, labels that are neither 0 nor 1, without batches, and at segments that have not
    one value for each row.

    Example:
        >>> import torch
        >>> evaluate = evaluator([torch.arange(4.0).reshape(4, 1)], [0, 1, 0, 1])
        >>> evaluate(lambda x: x.squeeze(1))
        {'auc': 0.75}
    """
    unknown = sorted({*metrics} - {*METRICS})
    given = list(batches)
    if unknown or not metrics:
        raise MeasurementError(f"unknown metrics {unknown}; known are {sorted(METRICS)}")
    if not given:
        raise MeasurementError("evaluator needs at least one batch")
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    told = np.asarray(labels, dtype=np.float64).ravel()
    if not np.isin(told, (0, 1)).all():
        raise MeasurementError("labels are 0 or 1 for each row")
    groups = () if segments is None else read_segments(segments, len(told))
    return Evaluator(given, told, metrics, output, groups)


def _called(model: Callable[..., Any], batch: Any) -> Any:
    # What stands for a model takes anything by its signature, and says itself how it is called.
    bind = getattr(model, "call_of", None)
    args, kwargs = bind(batch) if bind else batch_call(getattr(model, "forward", model), batch)
    return model(*args, **kwargs)


def _scores(answer: Any, output: str | int | None) -> Array:
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
