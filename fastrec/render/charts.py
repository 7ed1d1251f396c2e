"""The charts of a report: plain horizontal bars and lines, labelled where the eye is, each one an `<svg>` element."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..measure import Breakdown
from ..report import SizeResult
from ..wording import duration, times
from .points import Fall, Point
from .svg import COLOURS, drawn, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["latency_chart", "parts_chart", "points_chart", "speedup_chart", "steps_chart"]

_WIDTH = 4.7
_HEIGHT = 2.9
_ROW = 0.54
_TICKS = 7
_CROWD = 8  # points that can be named beside them


def steps_chart(falls: Sequence[Fall]) -> str:
    """From the original to what serves: a bar of the whole, one floating bar for what each step takes away, a bar of what is left."""
    bars = [(falls[0].label, 0.0, falls[0].seconds, "before")]
    for old, new in itertools.pairwise(falls):
        low, high = sorted((old.seconds, new.seconds))
        tone = "good" if new.seconds <= old.seconds else "bad"
        bars.append((new.label, low, high, tone))
    bars.append(("serves", 0.0, falls[-1].seconds, "after"))
    most = max(high for _, _, high, _ in bars)

    def draw(axes: Axes) -> None:
        for row, (label, low, high, tone) in enumerate(bars):
            axes.barh(row, high - low, left=low, height=0.34, color=COLOURS[tone])
            axes.text(
                0, row - 0.24, shown(label), va="bottom", color=COLOURS["ink"],
                bbox={"facecolor": COLOURS["card"], "edgecolor": "none", "pad": 1.0},
            )  # fmt: skip
            sign = {"good": "−", "bad": "+"}.get(tone, "")
            said = f"{sign}{duration(high - low)}"
            axes.text(high + 0.015 * most, row, said, va="center", color=COLOURS["muted"])
            if row:
                edge = bars[row - 1][1] if bars[row - 1][3] == "good" else bars[row - 1][2]
                axes.plot([edge, edge], [row - 0.83, row - 0.17], color=COLOURS["line"], linewidth=0.8)
        _bare(axes, len(bars))
        axes.set_xlim(0, 1.2 * most)

    said = "; ".join(f"{fall.label}: {duration(fall.seconds)}" for fall in falls)
    return drawn(
        "steps", f"Median of one call, step by step. {said}", (_WIDTH, _ROW * len(bars) + 0.15), draw
    )


def points_chart(points: Sequence[Point], metric: str, allowed: float | None) -> str:
    """What was tried: how much faster, against what is lost of a metric, with 95 % intervals and the budget's line."""

    gains = [value for p in points for value in (p.speedup, p.low, p.high) if value is not None]
    low, high = min(gains), max(gains)
    room = 0.12 * (high - low or 1.0)

    def draw(axes: Axes) -> None:
        _grid(axes)
        axes.axhline(0, color=COLOURS["line"], linewidth=0.8)
        if allowed is not None:
            axes.axhline(allowed, color=COLOURS["bad"], linewidth=0.9, linestyle=(0, (4, 3)))
            axes.annotate(
                f"allowed {allowed:g}", (1, allowed), (0, 3), xycoords=axes.get_yaxis_transform(),
                textcoords="offset points", ha="right", va="bottom", color=COLOURS["bad"],
            )  # fmt: skip
        for point in points:
            tone = {"original": "before", "serves": "after", "tried": "muted"}[point.outcome]
            if point.low is not None and point.high is not None:
                axes.plot([point.low, point.high], [point.lost] * 2, color=COLOURS[tone], linewidth=1.4)
            if point.bound is not None:
                axes.plot([point.speedup] * 2, [point.lost, point.bound], color=COLOURS[tone], linewidth=1.4)
                axes.plot(point.speedup, point.bound, "_", color=COLOURS[tone], markersize=7)
            face = COLOURS["card"] if point.outcome == "tried" else COLOURS[tone]
            axes.plot(
                point.speedup, point.lost, "o", color=COLOURS[tone], markerfacecolor=face, markersize=5.5
            )
            if len(points) <= _CROWD or point.outcome != "tried":
                above = point.outcome == "tried"
                edge = point.lost if point.bound is None or not above else point.bound
                place = (point.speedup - low) / ((high - low) or 1.0)
                axes.annotate(
                    shown(point.label), (point.speedup, edge), (0, 7 if above else -7),
                    textcoords="offset points", va="bottom" if above else "top", color=COLOURS["ink"],
                    ha="left" if place < 0.3 else "right" if place > 0.6 else "center",
                )  # fmt: skip
        axes.set_xlim(low - room, high + room)
        losses = [value for p in points for value in (p.lost, p.bound, allowed) if value is not None]
        margin = 0.2 * (max(losses) - min(losses) or 1.0)
        axes.set_ylim(min(losses) - margin, max(losses) + margin)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}" if abs(value) > 1e-12 else "0")
        axes.set_xlabel("times as fast as the original")
        axes.set_ylabel(shown(f"{metric} lost"))

    said = "; ".join(f"{p.label}: {times(p.speedup)}, lost {p.lost:.2g}" for p in points)
    return drawn("points", f"Gain against loss. {said}", (_WIDTH, _HEIGHT), draw)


def latency_chart(sizes: Sequence[SizeResult]) -> str:
    """Medians with their 95 % intervals, and 95th percentiles, of a call of each number of rows, on scales of ratios."""

    def draw(axes: Axes) -> None:
        _grid(axes)
        rows = [size.rows for size in sizes]
        for tone, taken in (("before", [s.before for s in sizes]), ("after", [s.after for s in sizes])):
            colour = COLOURS[tone]
            medians = [one.p50 for one in taken]
            spread = [[one.p50 - one.low for one in taken], [one.high - one.p50 for one in taken]]
            axes.plot(rows, medians, color=colour, linewidth=1.6)
            axes.errorbar(
                rows, medians, spread, fmt="o", color=colour, markersize=4, elinewidth=1.2, capsize=2.5
            )
            axes.plot(
                rows, [one.p95 for one in taken], "v", color=colour, markersize=4, markerfacecolor="none"
            )
            axes.annotate(
                tone, (rows[-1], medians[-1]), (7, 0), textcoords="offset points", va="center", color=colour,
                annotation_clip=False,
            )  # fmt: skip
        axes.set_yscale("log")
        _by_rows(axes, rows)
        lows = [min(s.before.low, s.after.low) for s in sizes]
        highs = [max(s.before.p95, s.after.p95) for s in sizes]
        _durations(axes, min(lows), max(highs))

    return drawn(
        "latency", "Latency of one call by its number of rows, before and after", (_WIDTH, _HEIGHT), draw
    )


def speedup_chart(sizes: Sequence[SizeResult]) -> str:
    """How many times faster a call of each number of rows is, with 95 % intervals, beside the line of no change."""

    def draw(axes: Axes) -> None:
        _grid(axes)
        axes.axhline(1, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (4, 3)))
        rows = [size.rows for size in sizes]
        axes.plot(rows, [size.speedup.value for size in sizes], color=COLOURS["line"], linewidth=1.4)
        for size in sizes:
            tone = {"faster": "good", "slower": "bad", "no difference": "muted"}[size.verdict]
            ratio = size.speedup
            spread = [[ratio.value - ratio.low], [ratio.high - ratio.value]]
            axes.errorbar(
                size.rows, ratio.value, spread, fmt="o", color=COLOURS[tone], markersize=5, elinewidth=1.2, capsize=2.5
            )  # fmt: skip
            axes.annotate(
                times(ratio.value), (size.rows, ratio.high), (0, 5), textcoords="offset points", ha="center",
                color=COLOURS["ink"],
            )  # fmt: skip
        low = min(0.9, *(size.speedup.low for size in sizes))
        high = max(1.1, *(size.speedup.high for size in sizes))
        axes.set_ylim(low - 0.12 * (high - low), high + 0.18 * (high - low))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        _by_rows(axes, rows)

    said = "; ".join(f"{times(s.speedup.value)} at {s.rows:,} rows" for s in sizes)
    return drawn("speedup", f"Times as fast as the original. {said}", (_WIDTH, _HEIGHT), draw)


def parts_chart(breakdowns: Sequence[Breakdown]) -> str:
    """One bar of stacked parts for each thing that was taken apart."""
    most = max(one.seconds for one in breakdowns)

    def draw(axes: Axes) -> None:
        for row, one in enumerate(breakdowns):
            left = 0.0
            for part in one.parts:
                axes.barh(
                    row, part.seconds, left=left, height=0.38, color=COLOURS[part.kind],
                    edgecolor=COLOURS["card"], linewidth=0.8,
                )  # fmt: skip
                left += part.seconds
            axes.text(0, row - 0.26, shown(one.label), va="bottom", color=COLOURS["ink"], clip_on=False)
            axes.text(left + 0.015 * most, row, duration(one.seconds), va="center", color=COLOURS["muted"])
        _bare(axes, len(breakdowns))
        axes.set_xlim(0, 1.2 * most)

    said = "; ".join(
        f"{one.label}: " + ", ".join(f"{part.kind} {duration(part.seconds)}" for part in one.parts)
        for one in breakdowns
    )
    return drawn(
        "parts", f"Where the time of a call goes. {said}", (_WIDTH, 0.66 * len(breakdowns) + 0.1), draw
    )


def _bare(axes: Axes, rows: int) -> None:
    """Bars from top to bottom, without scales: each says its number."""
    axes.set_ylim(rows - 0.7, -0.75)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _grid(axes: Axes) -> None:
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _by_rows(axes: Axes, rows: Sequence[int]) -> None:
    """The numbers of rows that were measured, on a scale of ratios."""
    axes.set_xscale("log")
    axes.set_xticks(rows, [f"{one:,}" for one in rows])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(rows) / 1.5, max(rows) * 1.9)
    axes.set_xlabel("rows in one call")


def _durations(axes: Axes, low: float, high: float) -> None:
    """Round durations on a scale of ratios, few enough to read."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if low / 1.4 <= tick <= high * 1.4]
        if len(ticks) <= _TICKS:
            break
    axes.set_yticks(ticks, [_round(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(low / 1.4, high * 1.4)


def _round(seconds: float) -> str:
    """A duration of one figure.

    Example:
        >>> _round(2e-4), _round(0.01)
        ('200 us', '10 ms')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.999 * size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds / 1e-9:g} ns"
