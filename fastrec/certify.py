"""Whether what a recipe lost is within the budget, and milder settings where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import fx, nn

from .as_called import AsCalled
from .budget import Budget
from .errors import FastrecError, InputError, MeasurementError
from .losses import Accuracy, SegmentAccuracy, of_segments, refusal
from .measure import Evaluator, Loss, SegmentLoss
from .measure.loss import Array
from .measure.metrics import LOWER_IS_BETTER
from .memo import Memo
from .program import Answers, Program
from .request import Once
from .techniques import Applied, Technique

__all__ = ["Certifier", "Evaluate", "Judgement", "most"]

T = TypeVar("T")
Evaluate = Callable[[nn.Module], Mapping[str, float]]

_DEFAULT = Budget({"auc": 2e-4})


@dataclass(frozen=True)
class Judgement:
    """What was lost of each metric, of all rows and in each segment; `failed` says why nothing can be said."""

    accuracy: tuple[Accuracy, ...] = ()
    segments: tuple[SegmentAccuracy, ...] = ()
    failed: str = ""

    @property
    def holds(self) -> bool:
        """Whether all of it is within the budget for certain, or not bounded."""
        return not self.refusals

    @property
    def refusals(self) -> list[str]:
        """What is not within the budget for certain, in words: of all rows, then of segments."""
        said = [str(one) for one in self.accuracy if not one.holds]
        return [*filter(None, [self.failed]), *said, *filter(None, [refusal(self.segments)])]

    def __str__(self) -> str:
        return "; ".join(self.refusals)


def most(judgements: Iterable[Judgement]) -> Judgement:
    """What was lost at most, of every metric and in every segment, by several sessions that were judged alike, each on its own."""
    several = list(judgements)
    return Judgement(
        tuple(max(same, key=_upper) for same in zip(*(one.accuracy for one in several), strict=True)),
        tuple(max(same, key=_upper) for same in zip(*(one.segments for one in several), strict=True)),
        next((one.failed for one in several if one.failed), ""),
    )


def _upper(one: Accuracy | SegmentAccuracy) -> float:
    """The bound of a loss, or the loss itself; below all others what cannot be measured."""
    lost = one.value if one.upper is None else one.upper
    return -math.inf if lost is None else lost


class Certifier:
    """Compares what programs and sessions answer with the original, on the caller's labelled rows.

    Raises `InputError` where the budget names a metric that `evaluate` does not give, `MeasurementError` where
    `evaluate` fails on the original.
    """

    def __init__(self, original: Program, once: Once, evaluate: Evaluate, budget: Budget | None) -> None:
        self._original, self._once, self._evaluate = original, once, evaluate
        private = original.private()
        whole = AsCalled(private, Once(()), private.answers)
        self._scores: Array | None = None
        if isinstance(evaluate, Evaluator):
            self._scores = self._called(evaluate.scores, whole, "the original")
            self._before = evaluate.of(self._scores)
        else:
            self._before = self._metrics_of(whole, "the original")
        self.budget = budget or Budget({name: _DEFAULT.max_loss.get(name, 0.0) for name in self._before})
        named = dict.fromkeys((*self.budget.max_loss, *self.budget.segments))
        # What is not bounded is told.
        self._metrics = tuple({**named, **self._before})
        missing = sorted({*named} - {*self._before})
        if missing:
            raise InputError(f"the budget names {missing}, and evaluate gives {sorted(self._before)}")

    def judge(self, run: Answers, *, exact: bool = False) -> Judgement:
        """What was lost of each metric by answers that `run` gives, for flat batches of one request.

        What approximates and gives answers that cannot be judged, as scores that are not finite, is refused.
        Raises `MeasurementError` where what is `exact` does.
        """
        try:
            losses, segments = self._losses(AsCalled(self._original, self._once, run))
        except MeasurementError as error:
            if exact:
                raise
            return Judgement(failed=str(error))
        return Judgement(
            tuple(Accuracy.of(loss, self.budget.max_loss.get(loss.metric), exact=exact) for loss in losses),
            of_segments(segments, self.budget.segments, exact=exact),
        )

    def of(self, program: Program) -> Judgement:
        """What was lost of each metric by what a program answers as it is written."""
        return self.judge(self._run(program))

    def settle(
        self, technique: Technique, program: Program, memo: Memo, mend: Technique | None = None
    ) -> tuple[Technique, Applied, list[str]]:
        """The technique, or a milder one whose loss is certified, what it did, and why stronger ones may not serve.

        It is judged by what `mend`, a technique further on that brings answers back, makes of it; `memo` keeps what that learned for
        its own place. Where none is certified, the model comes back as it was, with no changes.
        """
        applied = memo.apply(technique, program)
        refused: list[str] = []
        settings = [technique]
        for setting in settings:  # grows by milder ones once the first is refused
            if setting is not technique:
                applied = memo.apply(setting, program)
            if not applied.changes:
                return setting, applied, refused
            made = program.with_model(applied.model)
            if mend is not None:
                made = made.with_model(memo.apply(mend, made).model)
            judged = self.of(made)
            if judged.holds:
                return setting, applied, refused
            refused.append(f"{setting}: {judged}")
            if setting is technique:
                settings += technique.milder(program, applied.changes)
        return technique, Applied(program.model, (), applied.skipped), refused

    def _run(self, program: Program) -> Answers:
        """What answers batches with one row of each request feature: a model that was not captured takes them repeated."""
        if isinstance(program.model, fx.GraphModule):
            return program.answers
        return lambda flat: program.answers(self._once.all(flat))

    def _losses(self, model: nn.Module) -> tuple[list[Loss], list[SegmentLoss]]:
        if self._scores is not None and isinstance(self._evaluate, Evaluator):
            scores = self._called(self._evaluate.scores, model, "what the recipe made")
            losses = self._evaluate.losses(self._scores, scores)
            segments = self._evaluate.by_segment(self._scores, scores)
            return [losses[name] for name in self._metrics], [
                one for one in segments if one.metric in self._metrics
            ]
        after = self._metrics_of(model, "what the recipe made")
        if missing := [name for name in self._metrics if name not in after]:
            raise MeasurementError(
                f"evaluate gave {sorted(self._before)} of the original, and no {missing} of what the recipe made"
            )
        made = []
        for name in self._metrics:
            sign = -1.0 if name in LOWER_IS_BETTER else 1.0
            was, now = float(self._before[name]), float(after[name])
            made.append(Loss(name, was, now, sign * (was - now), None, 0, 0))
        return made, []

    def _metrics_of(self, model: nn.Module, what: str) -> dict[str, float]:
        """What the caller's function says of a model. Raises `MeasurementError` where that is no mapping to finite numbers."""
        found = self._called(self._evaluate, model, what)
        if not isinstance(found, Mapping):
            raise MeasurementError(f"evaluate gives a mapping such as {{'auc': 0.79}}, got {found!r:.80}")
        if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in found.values()):
            raise MeasurementError(
                f"evaluate gives finite numbers by the name of their metric, got {dict(found)!r:.200} of {what}"
            )
        return dict(found)

    def _called(self, evaluate: Callable[[nn.Module], T], model: nn.Module, what: str) -> T:
        """What a function gives of a model. Raises `MeasurementError`, with its reason, where it raises what is not ours."""
        try:
            return evaluate(model)
        except FastrecError:
            raise
        except Exception as error:  # whatever the caller's function, or the model in it, raises
            raise MeasurementError(f"evaluate failed on {what}: {type(error).__name__}: {error}") from error
