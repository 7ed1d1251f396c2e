"""What the charts draw of a report: steps in their order, gains against losses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastrec.losses import Accuracy
from fastrec.measure import Loss, Ratio
from fastrec.recipe import Recipe
from fastrec.render.points import chosen_size, falls, judged, points
from fastrec.report import Report, Step, Trial, Tried
from fastrec.techniques import Change, Fuse, QuantizeLinears
from tests.reports import improved, size, unchanged

LOSSY = Step("quantize_linears", False, (Change("int8", "layer", "8 bits"),), 0.1)


def report(session: str = "onnxruntime", *, lossy: bool = True) -> Report:
    end = ", exact" if lossy else ""
    return replace(
        improved(),
        sizes=(
            size(1, 3e-4, 1e-4, f"eager{end}"),
            size(100, 1e-3, 4e-4, session),
            size(500, 4e-3, 2e-3, session),
        ),
        steps=(improved().steps[0], *([LOSSY] if lossy else [])),
        trials=(
            Trial(1, f"eager{end}", 1e-4, 9.0, ""),
            Trial(100, f"eager{end}", 5e-4, 2.0, "far behind the fastest"),
            Trial(100, f"openvino{end}", 4e-4, 2.5, ""),
            Trial(100, "onnxruntime", 2.5e-4, 4.0, ""),
            Trial(0, "inductor", None, None, "failed"),
        ),
    )


def steps_of(found: Report) -> list[tuple[str, float]]:
    return [(fall.label, round(fall.seconds * 1e6)) for fall in falls(found)]


def test_steps_go_from_the_original_over_what_is_exact_to_what_is_called() -> None:
    assert steps_of(report()) == [
        ("original", 1000),
        ("rewritten, in torch", 500),
        ("fastest exact session: openvino, exact", 400),
        ("session that serves: onnxruntime", 250),
        ("called with its checks", 400),
    ]


def test_an_exact_session_that_serves_is_one_step() -> None:
    assert steps_of(report(lossy=False)) == [
        ("original", 1000),
        ("rewritten, in torch", 500),
        ("session that serves: onnxruntime", 250),
        ("called with its checks", 400),
    ]


def test_steps_that_were_not_tried_are_left_out() -> None:
    assert steps_of(replace(report(), trials=())) == [("original", 1000), ("called with its checks", 400)]
    assert falls(unchanged()) == () and falls(report("original")) == ()


def judgement(metric: str, allowed: float | None) -> Accuracy:
    return Accuracy.of(Loss(metric, 0.8, 0.7999, 1e-4, 2e-5, 9000, 4000), allowed)


def test_points_are_those_of_the_size_that_approximates_nearest_the_middle() -> None:
    exact = replace(report().sizes[1], session="openvino, exact")
    given = replace(report(), accuracy=(judgement("logloss", None), judgement("auc", 2e-4)))
    assert [(p.label, p.speedup, p.lost, p.outcome) for p in points(given)] == [
        ("original", 1.0, 0.0, "original"),
        ("openvino, exact (alone)", 2.5, 0.0, "tried"),
        ("onnxruntime (alone)", 4.0, 1e-4, "tried"),
        ("onnxruntime", pytest.approx(2.5), 1e-4, "serves"),
    ]
    serves = points(given)[-1]
    assert serves.low == pytest.approx(2.475) and serves.bound is not None and serves.bound > serves.lost
    beside = replace(given, sizes=(given.sizes[0], exact, given.sizes[2]))
    assert [p.speedup for p in points(beside)] == [1.0, pytest.approx(2.0)], "no exact trial at 500 rows"


def test_there_are_no_points_where_nothing_was_lost() -> None:
    exact = replace(judgement("auc", 2e-4), verdict="exact")
    assert points(report()) == () and points(replace(report(), accuracy=(exact,))) == ()
    assert points(replace(report(lossy=False), accuracy=(judgement("auc", 2e-4),))) == ()


def test_the_metric_is_the_first_that_the_budget_bounds() -> None:
    first, second = judgement("logloss", None), judgement("auc", 2e-4)
    assert judged(replace(report(), accuracy=(first, second))) is second
    assert judged(replace(report(), accuracy=(first,))) is first and judged(report()) is None


def test_the_size_is_the_middle_one() -> None:
    found = chosen_size(improved())
    assert found is not None and found.rows == 100 and chosen_size(unchanged()) is None


def test_after_a_search_every_recipe_that_was_timed_is_a_point() -> None:
    loss = Accuracy("auc", 0.8, 0.7999, 1e-4, 1.5e-4, 2e-4, "certified", 5000, None)
    timed = Tried(
        Recipe((Fuse(), QuantizeLinears())), "kept", "", Ratio(3.0, 2.9, 3.1, 40), None, (loss,), 100
    )
    refused = replace(timed, outcome="refused", speedup=None)
    found = replace(report(), searched=(timed, refused), accuracy=(loss,))
    first, tried, serves = points(found)
    assert first.outcome == "original"
    assert (tried.label, tried.speedup, tried.low, tried.lost, tried.bound) == (
        "QuantizeLinears()", 3.0, 2.9, 1e-4, 1.5e-4,
    )  # fmt: skip
    assert serves.outcome == "serves"
    assert serves.speedup == pytest.approx((3.0 * 2.5 * 2.0) ** (1 / 3))
