"""Charts of any report: tiny and huge numbers, one size and many, one point and a crowd."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from fastrec.measure import Breakdown, Part
from fastrec.render.charts import latency_chart, parts_chart, points_chart, speedup_chart, steps_chart
from fastrec.render.points import Fall, Point
from tests.reports import improved, size


def words(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def bars(svg: str, tone: str) -> list[tuple[float, float]]:
    """Left and right ends of the bars of a colour."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--(\w+)\)', svg)
    found = []
    for path, colour in paths:
        across = [float(x) for x in re.findall(r"[ML] (\S+) ", path)]
        if colour == tone and across:
            found.append((round(min(across), 1), round(max(across), 1)))
    return found


def test_each_step_takes_away_from_where_the_last_one_ended() -> None:
    chart = steps_chart((Fall("original", 1e-3), Fall("fused", 6e-4), Fall("checks", 7e-4)))
    assert words(chart) == [
        "original",
        "1.00 ms",
        "fused",
        "−400 us",
        "checks",
        "+100 us",
        "serves",
        "700 us",
    ]
    (before,), (good,), (bad,), (after,) = (bars(chart, tone) for tone in ("before", "good", "bad", "after"))
    assert good[1] == before[1] and bad[0] == good[0] and bad[1] == after[1] and after[0] == before[0]


def test_parts_are_stacked_to_the_whole() -> None:
    parts = (Part("lookup", 1e-4, 3), Part("dense", 3e-4, 2), Part("framework", 0.0, 9))
    chart = parts_chart((Breakdown("original", 100, 4e-4, parts, 30),))
    (lookup,), (dense,) = bars(chart, "lookup"), bars(chart, "dense")
    assert lookup[1] == dense[0] and dense[1] - dense[0] == pytest.approx(
        3 * (lookup[1] - lookup[0]), abs=0.5
    )
    assert words(chart) == ["original", "400 us"]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_latencies_have_a_few_round_marks(scale: float) -> None:
    sizes = [size(1, 3e-4 * scale, 1e-4 * scale), size(1000, 2e-2 * scale, 9e-3 * scale)]
    found = words(latency_chart(sizes))
    marks = [word for word in found if re.fullmatch(r"[\d.e+]+ (ns|us|ms|s)", word)]
    assert 2 <= len(marks) <= 7 and {"1", "1,000", "before", "after", "rows in one call"} <= set(found)


def test_verdicts_have_their_colours() -> None:
    chart = speedup_chart(improved().sizes)
    assert all(f"var(--{tone})" in chart for tone in ("good", "bad", "muted"))
    assert {"2.81x", "0.942x", "0.997x"} <= set(words(chart))


def test_a_crowd_names_what_serves_alone() -> None:
    few = [Point(f"tried {i}", 1.0 + i, None, None, 1e-4 * i, 2e-4 * i, "tried") for i in range(3)]
    many = [Point(f"tried {i}", 1.0 + i, None, None, 1e-4 * i, None, "tried") for i in range(30)]
    serves = Point("it", 2.0, 1.9, 2.1, 1e-4, 2e-4, "serves")
    assert {"tried 1", "it", "allowed 0.0002", "auc lost"} <= set(
        words(points_chart([*few, serves], "auc", 2e-4))
    )
    assert "it" in words(points_chart([*many, serves], "auc", 2e-4))
    assert "tried 1" not in words(points_chart([*many, serves], "auc", 2e-4))


def test_points_in_one_place_are_drawn() -> None:
    same = Point("it", 1.0, None, None, 0.0, None, "serves")
    assert "it" in words(points_chart([same, same], "auc", None))
