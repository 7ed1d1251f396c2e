"""The numbers of a report as CSV, for spreadsheets and data frames."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from ..report import Report
from ..wording import clean

__all__ = ["csv"]

Value = str | int | float | bool | None

# Spreadsheets take cells that begin so for formulas, in their full-width forms as well.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
_LONG = 1000


def csv(report: Report) -> dict[str, str]:
    """The report's tables as CSV texts (RFC 4180), by name: "latency", "accuracy", "segments", "breakdown", "trials"; empty
    ones are left out.

    Durations are in seconds, speed-ups and losses as they are, with all their digits; what is not known is an empty cell. A text
    that a spreadsheet would take for a formula gets an apostrophe in front, numbers never do.

    Example: `Path("latency.csv").write_text(csv(report)["latency"], newline="")`.
    """
    made = {
        "latency": _latency(report),
        "accuracy": [
            {**_loss(one), "allowed": one.allowed, "verdict": one.verdict, "needed_rows": one.needed}
            for one in report.accuracy
        ],
        "segments": [
            {
                "grouping": one.grouping, "segment": one.segment, **_loss(one),
                "allowed": one.allowed, "verdict": one.verdict, "needed_rows": one.needed,
            }
            for one in report.segments
        ],
        "breakdown": [
            {
                "of": one.label, "batch_rows": one.rows, "part": part.kind, "seconds": part.seconds,
                "total_seconds": one.seconds, "ceiling": one.ceiling(part), "calls": part.calls,
            }
            for one in report.breakdown
            for part in one.parts
        ],
        "trials": [
            {
                "batch_rows": one.rows or None, "session": one.session, "p50_seconds": one.p50,
                "speedup": one.speedup, "reason": one.reason,
            }
            for one in report.trials
        ],
    }  # fmt: skip
    return {name: _written(rows) for name, rows in made.items() if rows}


def _latency(report: Report) -> list[dict[str, Value]]:
    rows: list[dict[str, Value]] = []
    for size in report.sizes:
        row: dict[str, Value] = {"batch_rows": size.rows, "session": size.session, "verdict": size.verdict}
        for name, taken in (("before", size.before), ("after", size.after)):
            row |= {
                f"{name}_p50_seconds": taken.p50, f"{name}_low_seconds": taken.low, f"{name}_high_seconds": taken.high,
                f"{name}_p95_seconds": taken.p95, f"{name}_p99_seconds": taken.p99, f"{name}_calls": taken.n,
            }  # fmt: skip
        ratio = size.speedup
        rows.append(row | {"speedup": ratio.value, "speedup_low": ratio.low, "speedup_high": ratio.high})
    return rows


def _loss(one: object) -> dict[str, Value]:
    """What accounts of all rows and of segments share."""
    names = ("metric", "rows", "before", "after", "value", "upper")
    found = {name: getattr(one, name) for name in names}
    return {
        "lost" if name == "value" else "lost_at_most" if name == "upper" else name: v
        for name, v in found.items()
    }


def _written(rows: Sequence[dict[str, Value]]) -> str:
    import csv as standard

    file = io.StringIO()
    writer = standard.writer(file, lineterminator="\r\n")
    writer.writerow(rows[0])
    writer.writerows(_cells(row.values()) for row in rows)
    return file.getvalue()


def _cells(values: Iterable[Value]) -> list[Value]:
    return [_text(value) if isinstance(value, str) else value for value in values]


def _text(value: str) -> str:
    """A foreign text as one cell that nothing evaluates."""
    text = clean(value, _LONG)
    return f"'{text}" if text.startswith(_FORMULA) or value.startswith(_FORMULA) else text
