"""The sections of a report's page, in the order they are read; those without data are left out."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from ..losses import Accuracy
from ..report import Report, worked
from ..wording import amount, at, clean, count, duration, spans, times
from . import content
from .charts import latency_chart, parts_chart, points_chart, speedup_chart, steps_chart
from .content import Cell, Table
from .points import Point, chosen_size, falls, judged, points

__all__ = ["Chart", "Figure", "Section", "figures", "printable", "sections", "status"]

Tone = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Chart:
    """A drawing, which is markup, and a line below it."""

    svg: Any
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A titled part of the page: a line on how to read it, charts with tables `beside`, tables below, pairs of words, a text to copy."""

    id: str
    title: str
    lead: str = ""
    charts: tuple[Chart, ...] = ()
    beside: tuple[Table, ...] = ()
    tables: tuple[Table, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Figure:
    """One number of the headline."""

    name: str
    value: str
    note: str = ""
    tone: Tone = ""


_FEW = 8
"""Points that are listed beside their chart."""


def status(report: Report) -> Figure:
    """What became of the call, in a word or two."""
    if not report.met:
        return Figure("status", "budget missed", tone="bad")
    if report.status == "not_certifiable":
        return Figure("status", "not certifiable", tone="bad")
    if report.status == "unchanged":
        return Figure("status", "unchanged")
    good = any(size.verdict == "faster" for size in report.sizes)
    return Figure("status", "improved" if good else "changed", tone="good" if good else "")


def figures(report: Report) -> tuple[Figure, ...]:
    """The few numbers that a reader takes away."""
    found: list[Figure] = []
    size = chosen_size(report)
    if size is not None:
        ratio = size.speedup
        tone: Tone = "good" if ratio.faster else "bad" if ratio.slower else ""
        interval = spans(times(ratio.low), times(ratio.high))
        found.append(
            Figure(
                f"Speed-up {at([size.rows], report.counted)}", times(ratio.value), f"{interval}, 95 %", tone
            )
        )
        found.append(
            Figure("Median of one call", duration(size.after.p50), f"{duration(size.before.p50)} before")
        )
    if report.accuracy:
        found.append(_judged(judged(report) or report.accuracy[0]))
    elif report.fidelity is not None:
        found.append(Figure("Answers", *_answers(report)))
    before, after = report.memory.before_bytes, report.memory.after_bytes + report.memory.session_bytes
    found.append(Figure("Memory", amount(after), f"{amount(before)} before"))
    return tuple(found)


def sections(report: Report) -> tuple[Section, ...]:
    """The sections, from the gain to the recipe."""
    made = (
        _gain(report),
        _trade(points(report), judged(report)),
        _latency(report),
        _accuracy(report),
        _parts(report),
        _memory(report),
        _done(report),
        _tried(report),
        Section("machine", "Machine", facts=_machine(report)),
        _recipe(report),
    )
    return tuple(section for section in made if section is not None)


def printable(text: str) -> str:
    r"""JSON in which characters that do not show, or turn the direction of others, are escapes.

    Example:
        >>> printable('"a\u202eb"')
        '"a\\u202eb"'
    """
    hidden = ("Cf", "Cc", "Cs", "Co", "Cn")
    return "".join(
        json.dumps(c)[1:-1] if unicodedata.category(c) in hidden and c != "\n" else c for c in text
    )


def _gain(report: Report) -> Section | None:
    steps, size = falls(report), chosen_size(report)
    if not steps or size is None:
        return None
    cells = tuple(
        (
            Cell(fall.label),
            Cell(duration(fall.seconds)),
            Cell(times(steps[0].seconds / fall.seconds), tone=_tone(steps[0].seconds / fall.seconds)),
        )
        for fall in steps
    )
    table = Table(
        "From the original to what serves",
        ("state", "median", "speed-up"),
        cells,
        frozenset(("median", "speed-up")),
    )
    return Section(
        "steps",
        "What each step gives",
        f"Median of one call {at([size.rows], report.counted)}. Sessions alone are placed by their speed-up, which was measured in turn with the original.",
        (Chart(_drawing(steps_chart(steps))),),
        (table,),
    )


def _tone(ratio: float) -> Tone:
    return "good" if ratio > 1.02 else "bad" if ratio < 0.98 else ""


def _trade(found: tuple[Point, ...], loss: Accuracy | None) -> Section | None:
    if not found or loss is None:
        return None
    metric = clean(loss.metric, 40)
    rows = tuple(
        (
            Cell(point.label, "with its checks" if point.outcome == "serves" else ""),
            Cell(
                times(point.speedup),
                "" if point.low is None or point.high is None else spans(times(point.low), times(point.high)),
            ),
            Cell(f"{point.lost:.5f}", "" if point.bound is None else f"at most {point.bound:.5f}"),
        )
        for point in found
    )
    columns = ("what", "speed-up", "lost")
    return Section(
        "trade",
        f"Loss of {metric} against speed",
        "To the right is faster, downwards loses less. Bars are 95 % intervals of the speed-up and 95 % bounds of the loss.",
        (Chart(_drawing(points_chart(found, metric, loss.allowed))),),
        # A search has its own table of all.
        (Table("What was tried", columns, rows, frozenset(columns[1:])),) if len(found) <= _FEW else (),
    )


def _latency(report: Report) -> Section | None:
    if not report.sizes:
        return None
    charts: tuple[Chart, ...] = ()
    if len(report.sizes) > 1:
        charts = (
            Chart(
                _drawing(latency_chart(report.sizes)),
                "Medians with 95 % intervals; triangles are 95th percentiles.",
            ),
            Chart(
                _drawing(speedup_chart(report.sizes)),
                "Times as fast as the original, with 95 % intervals; the dashed line is no change.",
            ),
        )
    return Section(
        "latency",
        "Latency by batch size",
        "Original and compressed model took turns, call by call, on inputs that no choice had seen.",
        charts,
        tables=(content.latency(report),),
    )


def _accuracy(report: Report) -> Section | None:
    tables = tuple(table for table in (content.accuracy(report), *content.segments(report)) if table.rows)
    facts = content.fidelity(report.fidelity, report.counted) if report.fidelity is not None else []
    if not tables and not facts:
        return None
    lead = (
        "Judged on the same labelled rows before and after, so that what both get wrong cancels."
        if tables
        else ""
    )
    return Section("accuracy", "Accuracy", lead, tables=tables, facts=tuple(facts))


def _parts(report: Report) -> Section | None:
    if not report.breakdown:
        return None
    rows = report.breakdown[0].rows
    return Section(
        "parts",
        "Where the time goes",
        f"A call {at([rows], report.counted)}, operator by operator in torch. Lookups read tables, dense multiplies by weights, interaction mixes "
        "fields, framework is all that no operator takes itself: Python, dispatch, views. The ceiling is how much faster a call were if a part took nothing.",
        (Chart(_drawing(parts_chart(report.breakdown))),),
        (content.parts(report),),
    )


def _memory(report: Report) -> Section:
    memory = report.memory
    rows = [
        (Cell("tensors before"), Cell(amount(memory.before_bytes)), Cell("")),
        (
            Cell("tensors after"),
            Cell(amount(memory.after_bytes)),
            _change(memory.before_bytes, memory.after_bytes),
        ),
    ]
    if memory.session_bytes:
        rows.append((Cell("held by sessions beyond that"), Cell(amount(memory.session_bytes)), Cell("")))
    if report.tables is not None:
        said = Cell(
            "", f"{amount(report.tables.allowed)} allowed", "", "met" if report.tables.met else "missed"
        )
        rows.append((Cell("tables as they serve"), Cell(amount(report.tables.bytes)), said))
    table = Table("Memory", ("what", "bytes", "change"), tuple(rows), frozenset(("bytes", "change")))
    facts = () if report.work is None else (("Multiply-adds per candidate", worked(report.work)),)
    return Section("memory", "Memory and work", tables=(table,), facts=facts)


def _change(before: int, after: int) -> Cell:
    return Cell(f"{(after / before - 1) * 100:+.1f} %" if before else "")


def _done(report: Report) -> Section | None:
    tables = tuple(table for table in (content.steps(report), content.skipped(report.skipped)) if table.rows)
    return Section("done", "What was done, and what was not", tables=tables) if tables else None


def _tried(report: Report) -> Section | None:
    tables = tuple(table for table in (content.searched(report), content.trials(report)) if table.rows)
    lead = "Every session that was compiled, at each batch size, beside the original; and those that did not get that far."
    if report.searched:
        lead = f"Every recipe that was searched, then of the one that was found: {lead[0].lower()}{lead[1:]}"
    return Section("trials", "Trials", lead, tables=tables) if tables else None


def _machine(report: Report) -> tuple[tuple[str, str], ...]:
    found = report.machine
    libraries = ", ".join(
        f"{clean(name, 40)} {clean(version, 40)}" for name, version in found.libraries.items()
    )
    pairs = [
        ("Processor", clean(found.cpu, 200)),
        ("Instructions", clean(", ".join(found.flags), 300)),
        ("Cores", f"{found.affinity} of {count(found.cores, 'core')}, {count(found.threads, 'thread')}"),
        ("Load", "" if found.load is None else f"{found.load:.2f}"),
        ("Libraries", f"{libraries}, Python {clean(found.python, 40)}"),
        ("System", clean(found.platform, 200)),
        ("Date", clean(found.date, 60)),
        ("Compression", f"took {duration(report.seconds)}, not part of any latency above"),
    ]
    return tuple((word, said) for word, said in pairs if said)


def _recipe(report: Report) -> Section | None:
    if not len(report.recipe):
        return None
    lead = "What was applied, to read back with Recipe.from_json: a click selects all of it."
    return Section("recipe", "Recipe", lead, code=printable(report.recipe.to_json()))


def _judged(one: Accuracy) -> Figure:
    """A metric, as a number of the headline."""
    tone: Tone = "bad" if not one.holds else "good" if one.verdict in ("certified", "exact") else ""
    note = f"{one.before:.5f} before: {'what serves is exact' if one.verdict == 'exact' else one.verdict}"
    return Figure(clean(one.metric, 24), f"{one.after:.5f}", note, tone)


def _answers(report: Report) -> tuple[str, str, Tone]:
    found = report.fidelity
    assert found is not None
    if found.identical:
        return "identical", "bit for bit", "good"
    if found.exact:
        return "the same", f"within {found.max_abs:.1e}, float rounding", "good"
    return f"within {found.max_abs:.1e}", f"over {count(found.rows, 'row')}" if report.counted else "", ""


def _drawing(svg: str) -> Any:
    """A drawing of ours as markup: its texts were escaped as it was written."""
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704 - serialised by ElementTree
