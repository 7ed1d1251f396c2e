"""What a reader must know before the good news: what was refused, missed, slower or not certain, and the notes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..losses import by_table, refusal
from ..report import Report
from ..wording import at, clean, spans, times

__all__ = ["Alert", "alerts"]

_LONG = 400
_THIN = "in calibration=..."


@dataclass(frozen=True)
class Alert:
    """One warning: a word or two, what there is to say, and whether it is bad news or a note."""

    title: str
    text: str
    tone: Literal["bad", "note"] = "bad"


def alerts(report: Report) -> tuple[Alert, ...]:
    """The warnings of a report, bad news first; nothing where there is nothing to warn of."""
    found = []
    if report.status == "not_certifiable":
        found.append(
            Alert("Not certifiable", "nothing that approximates could be certified; what is exact serves")
        )
    found += [Alert("Budget refused", clean(skip.reason, _LONG)) for skip in report.refused]
    if report.tables is not None and not report.tables.met:
        found.append(Alert("Budget missed", str(report.tables)))
    if report.late:
        found.append(Alert("Budget missed", report.in_time))
    found += [
        Alert(
            "Slower",
            f"{times(size.speedup.value)} {at([size.rows], report.counted)} "
            f"({spans(times(size.speedup.low), times(size.speedup.high))}), by {clean(size.session, 40)}",
        )
        for size in report.sizes
        if size.verdict == "slower"
    ]
    found += [
        Alert(one.verdict.capitalize(), clean(str(one), _LONG)) for one in report.accuracy if not one.holds
    ]
    for table in by_table(report.segments):
        if said := refusal(table):
            found.append(Alert("Segments", clean(said, _LONG)))
    if report.fidelity is not None and not report.fidelity.nonfinite_alike:
        found.append(Alert("Answers", "NaN or infinities come out in other places than from the original"))
    return (*found, *(Alert(_title(note), clean(note, _LONG), "note") for note in report.notes))


def _title(note: str) -> str:
    return "Thin calibration" if _THIN in note else "Note"
