"""What was done to a model, what it gains and what it costs, as plain data that travels as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import Any, Literal

from .errors import InputError
from .losses import Accuracy, SegmentAccuracy, told
from .measure import Breakdown, Fidelity, Latency, Machine, Ratio
from .plain import dumps, from_plain, loads, to_plain
from .recipe import Recipe
from .techniques import TECHNIQUES, Change, Skip, Technique
from .tried import Tried, pareto
from .updated import Updated
from .wording import amount, at, clean, count, difference, duration, flush_right, sized, spans, times

__all__ = [
    "BUDGET",
    "Accuracy",
    "Memory",
    "Report",
    "SegmentAccuracy",
    "SizeResult",
    "Status",
    "Step",
    "Tables",
    "Trial",
    "Tried",
    "Updated",
    "Work",
    "worked",
]

SCHEMA = 1
_SHOWN = 6
Status = Literal["improved", "unchanged", "budget_missed", "not_certifiable"]
_SAID = {
    "budget_missed": "The budget was missed",
    "not_certifiable": "Nothing that approximates could be certified",
}
BUDGET = "budget"
"""The site of what the budget refused, its rule being the technique."""


@dataclass(frozen=True)
class SizeResult:
    """One batch size: the original against the session that was chosen for it, interleaved.

    `tried` is the speed-up of that session where it is too uncertain to serve, and the original does.
    """

    rows: int
    before: Latency
    after: Latency
    speedup: Ratio
    session: str
    tried: Ratio | None = None

    @property
    def undecided(self) -> Ratio | None:
        """The speed-up whose interval is too wide to tell anything, where it is."""
        ratio = self.tried or self.speedup
        return ratio if ratio.undecided else None

    @property
    def verdict(self) -> Literal["faster", "no difference", "slower"]:
        """What the interval of the speed-up allows to say."""
        return "faster" if self.speedup.faster else "slower" if self.speedup.slower else "no difference"


@dataclass(frozen=True)
class Step:
    """One technique of the recipe: whether it kept the answer, its edits, and the seconds it took."""

    technique: str
    exact: bool
    changes: tuple[Change, ...]
    seconds: float


@dataclass(frozen=True)
class Trial:
    """One session tried at one batch size: median in seconds and speed-up where it ran, and what became of it."""

    rows: int
    session: str
    p50: float | None
    speedup: float | None
    reason: str


@dataclass(frozen=True)
class Memory:
    """Bytes of distinct tensors before and after, and bytes that sessions hold beyond them."""

    before_bytes: int
    after_bytes: int
    session_bytes: int


@dataclass(frozen=True)
class Tables:
    """What the tables take as they serve, and what the budget allows them, in bytes."""

    bytes: int
    allowed: int

    @property
    def met(self) -> bool:
        """Whether they fit."""
        return self.bytes <= self.allowed

    def __str__(self) -> str:
        end = "allowed" if self.met else "allowed: nothing smaller was found that may serve"
        return f"the tables take {amount(self.bytes)}, {amount(self.allowed)} are {end}"


@dataclass(frozen=True)
class Work:
    """Multiply-adds of matrix products: per candidate before and after, and once per call after."""

    candidate_before: float
    candidate_after: float
    request: float


@dataclass(frozen=True)
class Report:
    """The account of one `compress` call; `seconds` is what the call took; `tables` is there where the budget says what they may take,
    `segments` where `evaluate` groups its rows, `breakdown` (the original, then what serves) where there was time to look,
    `updated` where an artifact was brought up to a new checkpoint. Where no dimension of a batch counts rows it is not `counted`: it was
    measured at the shape of its example, and every `rows` is 1.

    `print(report)` gives the short of it; `fastrec.render` the whole: in a terminal, as Markdown, as a page of HTML and as CSV.
    """

    status: Status
    sizes: tuple[SizeResult, ...]
    steps: tuple[Step, ...]
    skipped: tuple[Skip, ...]
    trials: tuple[Trial, ...]
    fidelity: Fidelity | None
    memory: Memory
    machine: Machine
    recipe: Recipe
    seconds: float
    notes: tuple[str, ...] = ()
    work: Work | None = None
    accuracy: tuple[Accuracy, ...] = ()
    tables: Tables | None = None
    segments: tuple[SegmentAccuracy, ...] = ()
    breakdown: tuple[Breakdown, ...] = ()
    p95_ms: float | None = None
    searched: tuple[Tried, ...] = ()
    updated: Updated | None = None
    counted: bool = True

    @property
    def late(self) -> tuple[SizeResult, ...]:
        """The numbers of rows at which the 95th percentile of a call is above what the budget allows."""
        limit = self.p95_ms
        return () if limit is None else tuple(size for size in self.sizes if size.after.p95 * 1e3 > limit)

    @property
    def met(self) -> bool:
        """Whether tables and calls are within the budget, where it says what they may take: what is lost is within it, or does not serve."""
        return (self.tables is None or self.tables.met) and not self.late

    @property
    def pareto(self) -> tuple[Tried, ...]:
        """Of the recipes that were searched and are within the budget, those that no other one beats, the slowest first."""
        return pareto(self.searched)

    @property
    def refused(self) -> tuple[Skip, ...]:
        """The settings of approximate techniques that the budget refused."""
        names = {step.technique for step in self.steps if not step.exact}
        return tuple(skip for skip in self.skipped if skip.site == BUDGET and skip.rule in names)

    @property
    def headline(self) -> str:
        """The result in one sentence, the slower batch sizes included, and what was too uncertain to tell."""
        gained = f"{_SAID[self.status]}: {self._gained.lower()}" if self.status in _SAID else self._gained
        return f"{gained} ({self._untold})" if self._untold else gained

    @property
    def _untold(self) -> str:
        """Where an interval is too wide to tell, how wide, and what helps; nothing where none is."""
        wide = [(size, ratio) for size in self.sizes if (ratio := size.undecided) is not None]
        if not wide:
            return ""
        low, high = min(ratio.low for _, ratio in wide), max(ratio.high for _, ratio in wide)
        where = self._at([size for size, _ in wide])
        return f"{spans(times(low), times(high))} {where} is too wide an interval to tell: give more seconds"

    @property
    def _gained(self) -> str:
        same = self.sizes and all(size.session == "original" for size in self.sizes)
        if self.status == "unchanged" and not self.sizes:
            why = f" ({clean(self.skipped[0].reason, 200)})" if self.skipped else ""
            return f"Unchanged: nothing could be done{why}, and the original goes on serving"
        if self.status == "unchanged" or same:
            return "Unchanged: nothing was measured faster than the original, which goes on serving"
        if not self.sizes:
            done = any(step.changes for step in self.steps)
            return "Changed, and not timed" if done else "Unchanged: nothing could be done"
        faster = [size for size in self.sizes if size.verdict == "faster"]
        parts = []
        if faster:
            low, high = (times(pick(size.speedup.value for size in faster)) for pick in (min, max))
            span = high if low == high else spans(low, high)
            parts.append(f"{span} faster {self._at(faster)}")
        for verdict, words in (("no difference", "no measurable difference"), ("slower", "slower")):
            if some := [size for size in self.sizes if size.verdict == verdict]:
                parts.append(f"{words} {self._at(some)}")
        text = "; ".join(parts)
        return text[0].upper() + text[1:]

    def __str__(self) -> str:
        lines = [self.headline]
        if self.sizes:
            lines += flush_right([("rows", *_NAMES, "calls", "session"), *((sized(size.rows, self.counted), *_numbers(size), f"{size.after.n:,}", clean(size.session, 40)) for size in self.sizes)])  # fmt: skip
        if self.fidelity is not None:
            lines.append(f"largest difference of outputs: {_largest(self.fidelity, self.counted)}")
        lines += [str(one) for one in self.accuracy]
        lines += told(self.segments)
        lines += [f"does not serve: {skip.reason}" for skip in self.refused]
        lines += self._approximated() if self._lossy else []
        if self.tables is not None:
            lines.append(str(self.tables))
        if self.p95_ms is not None:
            lines.append(self.in_time)
        if self.searched:
            lines.append(self._looked)
        if self.updated is not None:
            lines.append(str(self.updated))
        if self.work is not None:
            lines.append(f"multiply-adds per candidate: {worked(self.work)}")
        if self.status in _SAID or not all(step.exact for step in self.steps):
            lines += [f"note: {clean(note, 240)}" for note in self.notes]
        done = count(sum(len(step.changes) for step in self.steps), "change")
        memory = f"{amount(self.memory.before_bytes)} before, {amount(self.memory.after_bytes)} after"
        if self.memory.session_bytes:
            memory += f" and {amount(self.memory.session_bytes)} in sessions"
        lines.append(f"{done}, {len(self.skipped)} skipped; tensors: {memory}; took {duration(self.seconds)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The headline and a line per batch size, for notebooks; `fastrec.render.html` is the whole."""
        lines = [f"<p><b>{escape(self.headline)}</b></p>"]
        if self.sizes:
            names = ("rows", *_NAMES, "session")
            cells = [
                (sized(size.rows, self.counted), *_numbers(size), clean(size.session, 40))
                for size in self.sizes
            ]
            body = "".join(f"<tr>{_row('td', line)}</tr>" for line in cells)
            lines.append(f"<table><thead><tr>{_row('th', names)}</tr></thead><tbody>{body}</tbody></table>")
        said = [str(one) for one in self.accuracy] + [
            f"does not serve: {skip.reason}" for skip in self.refused
        ]
        lines += [f"<p>{escape(clean(one, 400))}</p>" for one in said]
        return "".join(lines)

    @property
    def in_time(self) -> str:
        """Whether calls take no longer than the budget allows, in words."""
        if not self.late:
            where = "at every number of rows" if self.counted else at((), self.counted)
            return f"the 95th percentile of a call is within {self.p95_ms:g} ms {where}"
        over = ", ".join(f"{duration(size.after.p95)} {self._at([size])}" for size in self.late)
        return f"the 95th percentile of a call may be {self.p95_ms:g} ms: it is {over}"

    def _at(self, sizes: Sequence[SizeResult]) -> str:
        """The batch sizes, in words."""
        return at([size.rows for size in sizes], self.counted)

    @property
    def _looked(self) -> str:
        """What a search tried, and what nothing beats, or why nothing was certified."""
        tried = [one for one in self.searched if one.outcome != "not tried"]
        left = len(self.searched) - len(tried)
        said = (
            f"searched {count(len(tried), 'recipe')}{f', {left} more not for want of time' if left else ''}"
        )
        if self.pareto:
            return f"{said}; nothing beats: {self._front}"
        reasons = [f"{one.label}: {one.reason}" for one in tried if one.outcome == "refused"]
        return f"{said}; {clean(reasons[0], 300)}" if reasons else f"{said}; none had anything to do"

    @property
    def _front(self) -> str:
        parts = [
            f"{one.label} ({times(one.speedup.value)})" for one in self.pareto if one.speedup is not None
        ]
        return clean("; ".join(parts), 240)

    @property
    def _lossy(self) -> bool:
        """Whether something that approximates serves, or nothing was timed."""
        exact = ("original", ", exact")
        return not self.sizes or not all(size.session.endswith(exact) for size in self.sizes)

    def _approximated(self) -> list[str]:
        """What was done to the first sites that are no longer exact."""
        done = [change for step in self.steps if not step.exact for change in step.changes]
        lines = [f"  {clean(one.where, 120)}: {clean(one.detail, 160)}" for one in done[:_SHOWN]]
        return lines + [f"  and {len(done) - _SHOWN} more: see report.steps"] * (len(done) > _SHOWN)

    def to_json(self) -> str:
        """The report as strict JSON, with a `schema` number.

        Raises `InputError` at a number that is not finite.
        """
        data = {
            f.name: to_plain(getattr(self, f.name), f"report.{f.name}")
            for f in fields(self)
            if f.name not in ("recipe", "searched")
        }
        searched = [one.to_plain() for one in self.searched]
        return dumps({"schema": SCHEMA, **data, "recipe": self.recipe.to_plain(), "searched": searched})

    @classmethod
    def from_json(cls, text: str, *, techniques: Mapping[str, type[Technique]] = TECHNIQUES) -> Report:
        """The report that `to_json` wrote.

        Raises `InputError`, naming the place, at another schema or anything that does not fit. `techniques` is
        handed to `Recipe.from_json`.
        """
        data: dict[str, Any] = loads(text, "report", SCHEMA)
        if "recipe" not in data:
            raise InputError("report lacks ['recipe']")
        recipe = Recipe.from_plain(data.pop("recipe"), techniques=techniques)
        searched = data.pop("searched", [])
        if not isinstance(searched, list):
            raise InputError(f"report.searched: expected a list, got {searched!r:.80}")
        tried = tuple(Tried.from_plain(one, techniques=techniques) for one in searched)
        rest = from_plain(_WithoutRecipe, data, "report")
        return cls(**{f.name: getattr(rest, f.name) for f in fields(rest)}, recipe=recipe, searched=tried)


@dataclass(frozen=True)
class _WithoutRecipe:
    """The fields of a report that plain data can be read into by type alone."""

    status: Status
    sizes: tuple[SizeResult, ...]
    steps: tuple[Step, ...]
    skipped: tuple[Skip, ...]
    trials: tuple[Trial, ...]
    fidelity: Fidelity | None
    memory: Memory
    machine: Machine
    seconds: float
    notes: tuple[str, ...] = ()
    work: Work | None = None
    accuracy: tuple[Accuracy, ...] = ()
    tables: Tables | None = None
    segments: tuple[SegmentAccuracy, ...] = ()
    p95_ms: float | None = None
    breakdown: tuple[Breakdown, ...] = ()
    updated: Updated | None = None
    counted: bool = True


def worked(work: Work) -> str:
    """The multiply-adds before and after, in words."""
    return f"{work.candidate_before:,.0f} before, {work.candidate_after:,.0f} after and {work.request:,.0f} once per call"


_NAMES = ("before p50", "after p50", "speed-up", "95 % interval")


def _numbers(size: SizeResult) -> tuple[str, str, str, str]:
    """The cells of `_NAMES`."""
    ratio = size.speedup
    interval = spans(times(ratio.low), times(ratio.high))
    return duration(size.before.p50), duration(size.after.p50), times(ratio.value), interval


def _row(tag: str, cells: Sequence[str]) -> str:
    """Cells of a table of HTML, escaped."""
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)


def _largest(fidelity: Fidelity, counted: bool) -> str:
    """The largest difference of outputs, in words."""
    over = f" ({count(fidelity.rows, 'row')})" if counted else ""
    if fidelity.identical:
        return f"none, bit for bit{over}"
    text = difference(fidelity.max_abs)
    if fidelity.max_relative_to_spread is not None:
        text += f", {difference(fidelity.max_relative_to_spread)} of their spread"
    if fidelity.differing:
        text += f", {count(fidelity.differing, 'integer')} differ"
    if not fidelity.nonfinite_alike:
        text += ", NaN or infinities in other places"
    return f"{text}{over}"
