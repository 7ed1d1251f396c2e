"""Rows of tables that the examples share: latency and losses of a report, and calls that took turns."""

from __future__ import annotations

from collections.abc import Mapping

from fastrec import Report
from fastrec.measure import Loss, Samples
from fastrec.wording import duration, spans, times

LATENCY = ("rows", "before", "after", "speed-up", "95 % interval", "p95 before", "p95 after", "served by")
LOSSES = ("metric", "before", "after", "lost", "at most (95 %)")
TURNS = ("call", "median", "p95", "speed-up", "95 % interval")


def latency(report: Report) -> list[tuple[str, ...]]:
    """The rows of `LATENCY`: the model and what serves, in turns, at each number of rows."""
    return [
        (
            f"{size.rows:,}", duration(size.before.p50), duration(size.after.p50), times(size.speedup.value),
            spans(times(size.speedup.low), times(size.speedup.high)), duration(size.before.p95),
            duration(size.after.p95), size.session,
        )
        for size in report.sizes
    ]  # fmt: skip


def losses(found: Mapping[str, Loss]) -> list[tuple[str, ...]]:
    """The rows of `LOSSES`: what was lost on the same rows, with its one-sided bound; below zero it is a gain."""
    return [
        (name, *(f"{number:.5f}" for number in (one.before, one.after, one.value, one.upper)))
        for name, one in found.items()
    ]


def turns(samples: Samples) -> list[tuple[str, ...]]:
    """The rows of `TURNS`: each call beside the first."""
    first, *_ = samples.seconds
    rows = []
    for name in samples.seconds:
        ratio, taken = samples.ratio(first, name), samples.latency(name)
        interval = spans(times(ratio.low), times(ratio.high))
        rows.append((name, duration(taken.p50), duration(taken.p95), times(ratio.value), interval))
    return rows
