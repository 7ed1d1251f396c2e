"""What a rendered report says, before any layout: headline, tables, facts.

Names that come from a model are cleaned here (one line, bounded, no control characters); each layout escapes what is
special to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..losses import Accuracy, SegmentAccuracy, by_table, worst, worst_first
from ..measure import Breakdown, Fidelity, Latency, Ratio
from ..report import Memory, Report, SizeResult, Step, worked
from ..techniques import Change, Skip
from ..wording import amount, at, clean, count, difference, duration, share, sized, spans, times

__all__ = [
    "Cell",
    "Table",
    "accuracy",
    "facts",
    "fidelity",
    "latency",
    "memory",
    "parts",
    "searched",
    "segments",
    "skipped",
    "steps",
    "tables",
    "trials",
]

SHOWN = 20  # rows of skipped sites and trials; the rest is counted


@dataclass(frozen=True)
class Cell:
    """A text, a lesser note to it, and whether it is good or bad news.

    Pages that are read without colours also show `word`, and `mark` says which of a chart's colours it explains.
    """

    text: str
    note: str = ""
    tone: Literal["", "good", "bad"] = ""
    word: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A titled table; columns named in `numbers` are aligned right. `more` says what was left out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numbers: frozenset[str] = frozenset()
    more: str = ""


def tables(report: Report) -> tuple[Table, ...]:
    """The tables of a report, the empty ones left out."""
    made = (
        latency(report),
        *segments(report),
        parts(report),
        steps(report),
        searched(report),
        trials(report),
        skipped(report.skipped),
    )
    return tuple(table for table in made if table.rows)


def facts(report: Report) -> tuple[tuple[str, str], ...]:
    """The rest, as pairs of a word and what there is to say."""
    said = [("Notes", clean(note, 400)) for note in report.notes]
    if report.fidelity is not None:
        said += fidelity(report.fidelity, report.counted)
    said += [("Accuracy", clean(str(one), 400)) for one in report.accuracy]
    if report.tables is not None:
        said.append(("Tables", str(report.tables)))
    if report.p95_ms is not None:
        said.append(("Time of a call", report.in_time))
    if report.work is not None:
        said.append(("Multiply-adds per candidate", worked(report.work)))
    said.append(("Memory", memory(report.memory)))
    said.append(("Recipe", ", ".join(clean(t.name) for t in report.recipe) or "none"))
    said.append(("Machine", clean(str(report.machine), 400)))
    said.append(("Compression", f"took {duration(report.seconds)}, not part of any latency above"))
    return tuple(said)


def latency(report: Report) -> Table:
    """A row for each batch size, before and after."""
    columns = ("rows", "before", "after", "speed-up", "calls", "session")
    rows = tuple(
        (
            Cell(sized(size.rows, report.counted)),
            _percentiles(size.before),
            _percentiles(size.after),
            _speedup(size),
            Cell(f"{size.after.n:,}"),
            Cell(clean(size.session, 40)),
        )
        for size in report.sizes
    )
    return Table("Latency of one call: median, p95, 95 % intervals", columns, rows, frozenset(columns[:-1]))


def _percentiles(latency: Latency) -> Cell:
    doubt = max(latency.high - latency.p50, latency.p50 - latency.low) / latency.p50 if latency.p50 else 0.0
    return Cell(f"{duration(latency.p50)} ±{doubt * 100:.1f} %", f"p95 {duration(latency.p95)}")


def _speedup(size: SizeResult) -> Cell:
    value, interval = times(size.speedup.value), spans(times(size.speedup.low), times(size.speedup.high))
    if size.verdict == "slower":
        return Cell(f"slower {value}", interval, "bad")
    if size.verdict == "faster":
        return Cell(value, interval, "good", "faster")
    wide = ", a wide interval: give more seconds" if size.speedup.undecided else ""
    return Cell(value, f"{interval}{wide}", word="no difference")


def accuracy(report: Report) -> Table:
    """A row for each metric: before, after, what was lost and whether that is within the budget."""
    columns = ("metric", "before", "after", "lost", "at most (95 %)", "allowed", "verdict")
    rows = tuple(
        (
            Cell(clean(one.metric, 40), f"{one.rows:,} rows"),
            Cell(f"{one.before:.5f}"),
            Cell(f"{one.after:.5f}"),
            Cell(f"{one.value:.5f}"),
            Cell("-" if one.upper is None else f"{one.upper:.5f}"),
            Cell("-" if one.allowed is None else f"{one.allowed:g}"),
            _verdict(one),
        )
        for one in report.accuracy
    )
    return Table("Accuracy on the labelled rows", columns, rows, frozenset(columns[1:-1]))


def _verdict(one: Accuracy) -> Cell:
    needed = "" if one.needed is None or one.holds else f"needs about {one.needed:,} rows"
    tone: Literal["good", "bad", ""] = (
        "bad" if not one.holds else "good" if one.verdict in ("certified", "exact") else ""
    )
    return Cell(one.verdict, needed, tone)


def segments(report: Report) -> tuple[Table, ...]:
    """A table for each grouping and metric."""
    return tuple(map(_grouping, by_table(report.segments)))


def _grouping(segments: tuple[SegmentAccuracy, ...]) -> Table:
    """One grouping in its own order, or the worst of it where it is long."""
    first, lowest = segments[0], worst(segments)
    shown = segments if len(segments) <= SHOWN else worst_first(segments)
    columns = ("segment", "rows", "before", "after", "lost", "at most", "verdict")
    rows = tuple(
        (
            Cell(clean(one.segment, 40) or "(empty)", "worst" if one is lowest else ""),
            Cell(f"{one.rows:,}"),
            Cell("-" if one.before is None else f"{one.before:.5f}"),
            Cell("-" if one.after is None else f"{one.after:.5f}"),
            Cell("-" if one.value is None else f"{one.value:.5f}"),
            Cell("-" if one.upper is None else f"{one.upper:.5f}"),
            Cell(
                one.verdict,
                "" if one.needed is None else f"needs about {one.needed:,} rows",
                "" if one.holds else "bad",
            ),
        )
        for one in shown
    )
    limit = "" if first.allowed is None else f", {first.allowed:g} allowed in each"
    title = f"{clean(first.metric, 40)} by {clean(first.grouping, 40)}{limit}: 95 % bounds of the loss"
    return _bounded(Table(title, columns, rows, frozenset(columns[1:-1])), "segment")


def parts(report: Report) -> Table:
    """What each kind of operator takes of a call, of the original and of what serves."""
    columns = ("of", "part", "time", "share", "ceiling", "calls")
    rows = tuple(row for one in report.breakdown for row in _parts(one))
    where = f" {at([one.rows for one in report.breakdown[:1]], report.counted)}" if report.breakdown else ""
    title = f"Where the time of one call goes{where}; the ceiling is how much faster it were if a part took nothing"
    return Table(title, columns, rows, frozenset(columns[2:]))


def _parts(one: Breakdown) -> list[tuple[Cell, ...]]:
    first = Cell(clean(one.label, 60), duration(one.seconds))
    rows: list[tuple[Cell, ...]] = []
    for part in one.parts:
        ceiling = one.ceiling(part)
        rows.append(
            (
                Cell("") if rows else first,
                Cell(part.kind, mark=f"swatch-{part.kind}"),
                Cell(duration(part.seconds) if part.seconds else "0"),
                Cell(share(part.seconds / one.seconds)),
                Cell("-" if ceiling is None else times(ceiling)),
                Cell(f"{part.calls:,}"),
            )
        )
    return rows


def steps(report: Report) -> Table:
    """A row for each rule of each technique that was applied."""
    columns = ("step", "rule", "sites", "added", "first site")
    rows: list[tuple[Cell, ...]] = []
    for step in report.steps:
        name = Cell(
            clean(step.technique), f"{'exact' if step.exact else 'approximate'}, {duration(step.seconds)}"
        )
        if not step.changes:
            rows.append((name, Cell("nothing to do here"), Cell("0"), Cell(""), Cell("")))
        for rule, changes in _by_rule(step).items():
            first = changes[0]
            rows.append(
                (
                    name,
                    Cell(clean(rule, 60)),
                    Cell(f"{len(changes):,}"),
                    Cell(amount(sum(change.added_bytes for change in changes))),
                    Cell(
                        clean(first.site, 50),
                        clean("; ".join(filter(None, (first.place, first.detail))), 120),
                    ),
                )
            )
            name = Cell("")
    return Table("What was done", columns, tuple(rows), frozenset({"sites", "added"}))


def _by_rule(step: Step) -> dict[str, list[Change]]:
    grouped: dict[str, list[Change]] = {}
    for change in step.changes:
        grouped.setdefault(change.rule, []).append(change)
    return grouped


def searched(report: Report) -> Table:
    """What a search tried, what had nothing to do last."""
    columns = ("recipe", "speed-up", "over the best so far", "lost", "at most", "bytes", "outcome")
    rows = tuple(
        (
            Cell(clean(one.label, 90)),
            Cell("-") if one.speedup is None else _ratio(one.speedup),
            Cell("-" if one.gain is None else times(one.gain.value)),
            Cell(f"{one.accuracy[0].value:.5f}" if one.accuracy else "-"),
            Cell(
                "-" if not one.accuracy or one.accuracy[0].upper is None else f"{one.accuracy[0].upper:.5f}"
            ),
            Cell("-" if one.bytes is None else amount(one.bytes)),
            Cell(one.outcome, clean(one.reason, 120), "good" if one.outcome == "kept" else ""),
        )
        for one in sorted(report.searched, key=lambda one: one.outcome in ("nothing to do", "not tried"))
    )
    title = "What was searched: what serves with it over the original, as a geometric mean over the sizes, in the order of trials"
    return _bounded(Table(title, columns, rows, frozenset(columns[1:-1])), "recipe")


def _ratio(ratio: Ratio) -> Cell:
    return Cell(times(ratio.value), spans(times(ratio.low), times(ratio.high)))


def trials(report: Report) -> Table:
    """A row for each session that was tried."""
    columns = ("rows", "session", "p50", "speed-up", "outcome")
    serving = {(size.rows, size.session) for size in report.sizes}
    rows = tuple(
        (
            Cell(sized(trial.rows, report.counted) if trial.rows else "-"),
            Cell(clean(trial.session, 40)),
            Cell("-" if trial.p50 is None else duration(trial.p50)),
            Cell("-" if trial.speedup is None else times(trial.speedup)),
            Cell(clean(trial.reason, 200) or ("serves" if (trial.rows, trial.session) in serving else "")),
        )
        for trial in report.trials
    )
    return _bounded(Table("What was tried", columns, rows, frozenset({"rows", "p50", "speed-up"})), "trial")


def skipped(skips: Iterable[Skip]) -> Table:
    """A row for each rule and reason."""
    grouped: dict[tuple[str, str], list[Skip]] = {}
    for skip in skips:
        grouped.setdefault((skip.rule, skip.reason), []).append(skip)
    rows = tuple(
        (
            Cell(clean(rule, 60)),
            Cell(f"{len(some):,}"),
            Cell(clean(some[0].site, 50), clean(some[0].place, 80)),
            Cell(clean(reason, 200)),
        )
        for (rule, reason), some in grouped.items()
    )
    columns = ("rule", "sites", "first site", "reason")
    return _bounded(Table("What was not done, and why", columns, rows, frozenset({"sites"})), "more reason")


def _bounded(table: Table, noun: str) -> Table:
    left = len(table.rows) - SHOWN
    if left <= 0:
        return table
    more = f"{count(left, noun)} left out here; the JSON has all"
    return Table(table.title, table.columns, table.rows[:SHOWN], table.numbers, more)


def fidelity(found: Fidelity, counted: bool) -> list[tuple[str, str]]:
    """How far answers are off, and how many keep their rank."""
    if found.identical:
        said = "none: equal bit for bit"
    else:
        parts = [difference(found.max_abs)]
        if found.max_relative_to_spread is not None:
            parts.append(f"{difference(found.max_relative_to_spread)} of the outputs' spread")
        parts.append("within float rounding" if found.exact else "beyond float rounding")
        if found.differing:
            parts.append(f"{count(found.differing, 'integer')} differ")
        if not found.nonfinite_alike:
            parts.append("NaN or infinities in other places")
        said = ", ".join(parts)
    over = f" (over {count(found.rows, 'row')})" if counted else ""
    pairs = [("Largest difference", f"{said}{over}")]
    if found.rank_kept is not None and found.kendall_tau is not None:
        pairs.append(
            (
                "Ranking",
                f"{share(found.rank_kept)} of scores keep their rank, Kendall tau {found.kendall_tau:.6f} at worst",
            )
        )
    return pairs


def memory(memory: Memory) -> str:
    """The bytes of tensors before and after, and those of sessions."""
    change = ""
    if memory.before_bytes:
        change = f" ({(memory.after_bytes / memory.before_bytes - 1) * 100:+.1f} %)"
    sessions = f"; sessions hold {amount(memory.session_bytes)} beyond that" if memory.session_bytes else ""
    return (
        f"tensors {amount(memory.before_bytes)} before, {amount(memory.after_bytes)} after{change}{sessions}"
    )
