"""Which session serves which number of rows."""

from __future__ import annotations

import pytest
import torch

from fastrec.measure.latency import Latency, Ratio
from fastrec.plan import ORIGINAL, Plan, as_original, better, choose, preferred, worth_it
from fastrec.report import SizeResult, Trial

from .fakes import FakeClock, FakeSession


@pytest.mark.parametrize(("rows", "name"), [(0, "a"), (1, "a"), (9, "a"), (11, "b"), (99, "b"), (10**6, "c")])
def test_the_nearest_measured_size_by_ratio(rows: int, name: str) -> None:
    assert Plan((1, 100, 1000), ("a", "b", "c")).name_for(rows) == name


def test_the_fastest_is_chosen() -> None:
    clock = FakeClock()
    model = torch.nn.Identity()
    sessions = {"quick": FakeSession(model, clock, 0.001), "slow": FakeSession(model, clock, 0.01)}
    original = FakeSession(model, clock, 0.004)
    calls = {name: (lambda flat, session=session: session(*flat)) for name, session in sessions.items()}
    winner, trials = choose(
        3, lambda flat: original(*flat), calls, lambda rows, i: [torch.zeros(rows)], 0.2, clock=clock
    )
    assert winner == "quick"
    assert {trial.session: trial.reason for trial in trials} == {
        "quick": "",
        "slow": "far behind the fastest",
    }
    assert trials[0].speedup == pytest.approx(4.0)


def test_an_exact_session_is_preferred_where_it_is_as_fast() -> None:
    trials = [Trial(1, name, p50, 1.0, "") for name, p50 in (("coarse", 1.0), ("exact", 1.02), ("slow", 1.1))]
    assert preferred(trials, {"exact", "slow"}) == "exact"
    assert preferred(trials, {"slow"}) == "coarse"
    assert preferred([*trials, Trial(1, "broken", None, None, "")], ()) == "coarse"


def test_what_is_cut_is_preferred_only_where_the_rest_of_its_recipe_is_slower() -> None:
    def trials(beside: float) -> list[Trial]:
        medians = (("int8", 1.0), ("int8, without prune_neurons", beside), ("exact", 1.5))
        return [Trial(1, name, p50, 1.0, "") for name, p50 in medians]

    uncut = {"int8, without prune_neurons", "exact"}
    assert preferred(trials(1.02), {"exact"}, uncut) == "int8, without prune_neurons"
    assert preferred(trials(1.2), {"exact"}, uncut) == "int8"


def result(low: float, value: float) -> SizeResult:
    latency = Latency(100, 0.001, 0.002, None, 0.0009, 0.0011)
    return SizeResult(1, latency, latency, Ratio(value, low, value + 0.1, 100), "eager")


def test_a_session_serves_only_where_it_was_faster() -> None:
    assert worth_it(result(1.2, 1.3))
    assert not worth_it(result(0.99, 1.3))
    assert not worth_it(result(1.005, 1.01))
    assert as_original(result(0.9, 0.95)).session == ORIGINAL


def test_what_was_too_uncertain_to_serve_is_kept() -> None:
    unsure, original = (
        result(0.7, 2.0),
        SizeResult(1, *[result(1, 1).before] * 2, Ratio(1, 1, 1, 9), ORIGINAL),
    )
    assert as_original(unsure).tried == unsure.speedup and as_original(unsure).speedup.value == 1
    assert better(result(0.7, 0.9), original).tried == result(0.7, 0.9).speedup
    assert as_original(result(0.95, 1.0)).tried is None


def test_beside_its_own_checks_the_original_stays_unless_a_session_is_worth_it() -> None:
    def at(speed: float, session: str) -> SizeResult:
        latency = Latency(40, 1.0, 1.0, None, 1.0, 1.0)
        return SizeResult(8, latency, latency, Ratio(speed, speed, speed, 40), session)

    original = at(0.8, ORIGINAL)
    assert better(at(0.9, "eager"), original).session == "eager"
    assert better(at(0.81, "eager"), original) == original
    assert better(at(0.7, "eager"), original) == original
