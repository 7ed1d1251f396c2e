"""What the charts draw, apart from any drawing: what was tried as points of gain and loss, and what each step gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..losses import Accuracy
from ..measure import Ratio
from ..report import Report, SizeResult, Trial
from ..wording import clean

__all__ = ["ALONE", "Fall", "Point", "chosen_size", "falls", "judged", "points"]

ALONE = "(alone)"
"""Behind the name of a session that was timed without the checks in front of it."""

_EXACT = ", exact"
_LONG = 40


@dataclass(frozen=True)
class Point:
    """One thing that was tried: how much faster than the original, with its 95 % interval where there is one, and what it
    loses of a metric, with the bound that is certain at 95 % where there is one."""

    label: str
    speedup: float
    low: float | None
    high: float | None
    lost: float
    bound: float | None
    outcome: Literal["original", "serves", "tried"]


@dataclass(frozen=True)
class Fall:
    """A state on the way from the original to what serves: seconds of one call."""

    label: str
    seconds: float


def chosen_size(report: Report) -> SizeResult | None:
    """The middle one of the measured sizes, for what is shown at one alone."""
    return report.sizes[len(report.sizes) // 2] if report.sizes else None


def judged(report: Report) -> Accuracy | None:
    """The metric whose loss is drawn: the first that was measured and is bounded by the budget; None where what serves is exact."""
    measured = [one for one in report.accuracy if one.verdict != "exact"]
    return next((one for one in measured if one.allowed is not None), next(iter(measured), None))


def points(report: Report) -> tuple[Point, ...]:
    """The original, the best session that keeps the answer, the session that serves where that approximates, and the same as it
    is called, its checks in front, at the chosen size; after a search every recipe that was timed, over all sizes.

    Empty where nothing was lost that could be set against what was gained.
    """
    if any(one.speedup is not None for one in report.searched):
        return _searched(report)
    loss = judged(report)
    lossy = [size for size in report.sizes if _approximates(report, size.session)]
    if loss is None or not lossy:
        return ()
    # Where the middle size is served exactly, the nearest one that is not shows the trade.
    middle = report.sizes.index(report.sizes[len(report.sizes) // 2])
    size = min(lossy, key=lambda one: abs(report.sizes.index(one) - middle))
    found = [Point("original", 1.0, None, None, 0.0, None, "original")]
    best, alone = _best(report, size.rows), _trial(report, size.rows, [size.session])
    if best is not None and best.speedup is not None:
        found.append(
            Point(f"{clean(best.session, _LONG)} {ALONE}", best.speedup, None, None, 0.0, None, "tried")
        )
    if alone is not None and alone.speedup is not None:
        label = f"{clean(size.session, _LONG)} {ALONE}"
        found.append(Point(label, alone.speedup, None, None, loss.value, loss.upper, "tried"))
    ratio = size.speedup
    label = clean(size.session, _LONG)
    found.append(Point(label, ratio.value, ratio.low, ratio.high, loss.value, loss.upper, "serves"))
    return tuple(found)


def _searched(report: Report) -> tuple[Point, ...]:
    """The original, the recipes of a search that are within the budget, and what serves in the end, as geometric means over the sizes."""
    found = [Point("original", 1.0, None, None, 0.0, None, "original")]
    for one in report.searched:
        if one.speedup is not None and one.accuracy:
            loss, ratio = one.accuracy[0], one.speedup
            label = clean(one.label, _LONG)
            found.append(Point(label, ratio.value, ratio.low, ratio.high, loss.value, loss.upper, "tried"))
    served, last = Ratio.mean([size.speedup for size in report.sizes]), judged(report)
    lost, bound = (0.0, None) if last is None else (last.value, last.upper)
    found.append(Point("what serves", served.value, served.low, served.high, lost, bound, "serves"))
    return tuple(found)


def falls(report: Report) -> tuple[Fall, ...]:
    """The original, the rewritten graph in torch, the best session that keeps the answer, the session that serves, and that session
    as it is called, its checks in front, at the chosen size.

    Steps that were not tried are left out; empty where the original serves. Sessions alone were timed in another pass, so their
    medians are the original's over their speed-up.
    """
    size = chosen_size(report)
    if size is None or size.session == "original":
        return ()
    before = size.before.p50
    names = {trial.session for trial in report.trials}
    eager = [
        name for name in names if name.removesuffix(_EXACT) == "eager" and not _approximates(report, name)
    ]
    trials = [
        ("rewritten, in torch", _trial(report, size.rows, eager)),
        ("fastest exact session", _best(report, size.rows)),
        ("session that serves", _trial(report, size.rows, [size.session])),
    ]
    found = [Fall("original", before)]
    for place, (what, trial) in enumerate(trials):
        later = [other for _, other in trials[place + 1 :]]
        if trial is not None and trial.speedup and trial not in later:
            label = what if place == 0 else f"{what}: {clean(trial.session, _LONG)}"
            found.append(Fall(label, before / trial.speedup))
    return (*found, Fall("called with its checks", before / size.speedup.value))


def _approximates(report: Report, session: str) -> bool:
    """Whether a session was made of a recipe that changes the answer."""
    lossy = any(step.changes and not step.exact for step in report.steps)
    return lossy and session != "original" and not session.endswith(_EXACT)


def _trial(report: Report, rows: int, names: list[str]) -> Trial | None:
    """The fastest of the trials of these sessions at a size."""
    timed = [t for t in report.trials if t.rows == rows and t.session in names and t.speedup is not None]
    return max(timed, key=lambda trial: trial.speedup or 0.0, default=None)


def _best(report: Report, rows: int) -> Trial | None:
    """The fastest session that keeps the answer, at a size."""
    return _trial(report, rows, [t.session for t in report.trials if not _approximates(report, t.session)])
