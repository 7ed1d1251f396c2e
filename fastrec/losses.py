"""What was lost, of all rows and in each segment of them, and whether that is within the budget for certain."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .measure import Loss, SegmentLoss
from .measure.loss import FEWEST
from .measure.segments import beyond
from .wording import clean, count

__all__ = ["Accuracy", "SegmentAccuracy", "by_table", "of_segments", "refusal", "worst", "worst_first"]

Verdict = Literal["certified", "not certifiable", "exceeded", "exact", "measured", "too few rows"]
_SHOWN = 3
_MOST = 100  # times the rows there are: beyond, what was lost is as good as all that is allowed


@dataclass(frozen=True)
class Accuracy:
    """What was lost of one metric on the caller's labelled rows, and whether that is within the budget for certain.

    `value` is the absolute loss, `upper` its one-sided 95 % bound, None where `evaluate` gives one number per model; `allowed`
    is None where nothing was said of this metric, and its loss is reported alone;
    `needed` the number of rows, about, that would certify it, None where none would; `groups` is how many groups of rows the
    metric is over, None without, and `left_out` how many had nothing to rank.
    """

    metric: str
    before: float
    after: float
    value: float
    upper: float | None
    allowed: float | None
    verdict: Literal["certified", "not certifiable", "exceeded", "exact", "measured"]
    rows: int
    needed: int | None
    groups: int | None = None
    left_out: int = 0

    @classmethod
    def of(cls, loss: Loss, allowed: float | None, *, exact: bool = False) -> Accuracy:
        """The account of a loss under a budget; what is `exact` loses nothing but rounding, and asks for no certificate."""
        verdict = "exact" if exact else "measured" if allowed is None else loss.verdict(allowed)
        needed = None if allowed is None else loss.needed(allowed)
        return cls(
            loss.metric,
            loss.before,
            loss.after,
            loss.value,
            loss.upper,
            allowed,
            verdict,
            loss.rows,
            needed,
            loss.groups,
            loss.left_out,
        )

    @property
    def holds(self) -> bool:
        """Whether the loss is certified, or none, or any is allowed."""
        return self.verdict in ("certified", "exact", "measured")

    def __str__(self) -> str:
        if self.verdict == "exact":
            return f"{self.metric} {self.before:.5f} before, {self.after:.5f} after: what serves is exact"
        over = (
            f" over {count(self.groups or 0, 'group')}, {self.left_out:,} left out" if self.left_out else ""
        )
        bound = "" if self.upper is None else f", at most {self.upper:.2g} (95 %)"
        said = f"{self.metric} {self.before:.5f} before, {self.after:.5f} after{over}: lost {self.value:.2g}{bound}"
        if self.allowed is None:
            return said
        said += f", {self.allowed:g} allowed: {self.verdict}"
        if self.verdict == "not certifiable":
            if self.upper is None:
                said += ", as evaluate gives one number per model: make it with fastrec.measure.evaluator"
            elif self.needed is not None:
                said += f": needs about {self.needed:,} rows, got {self.rows:,}"
        return said


@dataclass(frozen=True)
class SegmentAccuracy:
    """What was lost of one metric on the `rows` rows of one segment, and whether that is within `Budget.segments` for certain.

    As `Accuracy`, but for "too few rows": there are under 100 of one label, or groups, of which no bound is believed. Where nothing can be ranked,
    as without any of one label, `before`, `after`, `value` and `upper` are None. `needed` is the number of rows of the
    segment, about, that would certify it if little was lost; None where what was lost is as much as is allowed.
    """

    grouping: str
    segment: str
    metric: str
    rows: int
    before: float | None
    after: float | None
    value: float | None
    upper: float | None
    allowed: float | None
    verdict: Verdict
    needed: int | None

    @property
    def holds(self) -> bool:
        """Whether the loss is certified, or none, or any is allowed."""
        return self.allowed is None or self.verdict in ("certified", "exact")

    @property
    def name(self) -> str:
        """The segment, with its grouping."""
        return f"{clean(self.grouping, 40)} {clean(self.segment, 40) or '(empty)'}"

    def __str__(self) -> str:
        if self.value is None or self.upper is None:
            said = f"{self.metric} of {self.name}: not measured, its {count(self.rows, 'label')} leave nothing to rank"
        else:
            said = f"{self.metric} of {self.name}: {self.before:.5f} before, {self.after:.5f} after"
            if self.verdict != "exact":
                said += f", lost {self.value:.2g}, at most {self.upper:.2g} (95 %)"
        if self.allowed is not None and self.verdict != "exact":
            said += f", {self.allowed:g} allowed"
        if self.verdict != "measured":
            said += f": {'what serves is exact' if self.verdict == 'exact' else self.verdict}"
        if self.needed is not None:
            said += f": needs about {self.needed:,} rows of it, got {self.rows:,}"
        return said


def of_segments(
    losses: Iterable[SegmentLoss], allowed: Mapping[str, float], *, exact: bool = False
) -> tuple[SegmentAccuracy, ...]:
    """The account of each segment's loss under `allowed`, which bounds every segment, by metric.

    That *all* are within is certified where each is at 95 %: were one beyond, it would itself be certified in 5 % of cases at most,
    and all of them no oftener (an intersection-union test), so nothing is added for their number. Whether one is *exceeded* is corrected for it.
    """
    given = list(losses)
    # Of few rows no chance is believed either, so they are not among what is tested; labels decide that, not losses.
    tested = [
        (place, one.loss)
        for place, one in enumerate(given)
        if one.loss is not None and not one.loss.few and one.metric in allowed
    ]
    clear = beyond([loss for _, loss in tested], [allowed[loss.metric] for _, loss in tested])
    exceeded = {place for (place, _), sure in zip(tested, clear, strict=True) if sure}
    return tuple(
        _account(one, allowed.get(one.metric), exact, place in exceeded) for place, one in enumerate(given)
    )


def _account(one: SegmentLoss, allowed: float | None, exact: bool, exceeded: bool) -> SegmentAccuracy:
    loss = one.loss
    verdict: Verdict = "measured"
    needed: int | None = None
    if exact:
        verdict = "exact"
    elif loss is None:
        verdict, needed = "too few rows", FEWEST * one.rows
    elif loss.few:
        verdict, needed = "too few rows", _needed(loss, allowed)
    elif exceeded:
        verdict = "exceeded"
    elif allowed is not None and loss.verdict(allowed) == "certified":
        verdict = "certified"
    elif allowed is not None:
        verdict, needed = "not certifiable", _needed(loss, allowed)
    return SegmentAccuracy(
        one.grouping,
        one.segment,
        one.metric,
        one.rows,
        None if loss is None else loss.before,
        None if loss is None else loss.after,
        None if loss is None else loss.value,
        None if loss is None else loss.upper,
        allowed,
        verdict,
        needed,
    )


def _needed(loss: Loss, allowed: float | None) -> int | None:
    """How many rows of a segment, about, would certify it.

    What few rows seem to lose or gain is chance, so they are counted as if nothing were lost; where that many are there, by what was.
    """
    sound = replace(loss, value=0.0)
    if loss.few and not allowed:
        return sound.needed(math.inf)
    assert allowed is not None
    least = sound.needed(allowed)
    if least is not None and least > loss.rows:
        return least
    found = loss.needed(allowed)
    return None if found is None or found > _MOST * loss.rows else found


def by_table(segments: Iterable[SegmentAccuracy]) -> list[tuple[SegmentAccuracy, ...]]:
    """The segments of each grouping and metric, in the order they came."""
    tables: dict[tuple[str, str], list[SegmentAccuracy]] = {}
    for one in segments:
        tables.setdefault((one.grouping, one.metric), []).append(one)
    return [tuple(table) for table in tables.values()]


def worst_first(segments: Iterable[SegmentAccuracy]) -> list[SegmentAccuracy]:
    """What is exceeded, what is not certified, the rest, each by what was lost; last what is too few to say and not bounded."""

    def key(one: SegmentAccuracy) -> tuple[int, float]:
        if one.verdict == "too few rows":
            rank = 4 if one.allowed is None else 2
        else:
            rank = {"exceeded": 0, "not certifiable": 1}.get(one.verdict, 3)
        return rank, -(one.value or 0.0)

    return sorted(segments, key=key)


def worst(segments: Iterable[SegmentAccuracy]) -> SegmentAccuracy | None:
    """The segment that lost most, of those with rows enough to say; None where none lost anything."""
    lost = [one for one in segments if one.verdict not in ("exact", "too few rows") and (one.value or 0) > 0]
    return next(iter(worst_first(lost)), None)


def refusal(segments: Sequence[SegmentAccuracy]) -> str:
    """Which segments are not certified, the worst by name and with what it takes; nothing where all are."""
    failed = worst_first(one for one in segments if not one.holds)
    if not failed:
        return ""
    said = str(failed[0])
    if others := [one.name for one in failed[1:]]:
        left = f" and {len(others) - _SHOWN} others" if len(others) > _SHOWN else ""
        said += f"; {len(others)} more of {len(segments)} not certified: {', '.join(others[:_SHOWN])}{left}"
    needed = [one.needed for one in failed]
    if None not in needed:
        # Where one lost more than is allowed, more rows would only make that certain.
        said += f"; give more labelled rows, up to about {max(filter(None, needed)):,} in a segment, or fewer and larger segments"
    return said


def told(segments: Sequence[SegmentAccuracy]) -> list[str]:
    """The short of it: of each grouping and metric the first, worst first, and how many more there are."""
    if segments and all(one.verdict == "exact" for one in segments):
        return ["what serves is exact in every segment"]
    lines = []
    for table in by_table(segments):
        lines += [f"  {one}" for one in worst_first(table)[:_SHOWN]]
        if more := len(table) - _SHOWN:
            lines += [f"  and {count(more, 'segment')} more: see report.segments"] * (more > 0)
    return lines
