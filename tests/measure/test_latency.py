"""Interleaved timing and its statistics, on a clock that the test moves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from fastrec.errors import MeasurementError
from fastrec.measure.latency import Ratio, Samples, balanced_orders, interleaved
from tests.fakes import FakeClock


def taking(clock: FakeClock, seconds: float, log: list[tuple[str, int]], name: str) -> Callable[[int], None]:
    def call(value: int) -> None:
        log.append((name, value))
        clock.advance(seconds)

    return call


@pytest.mark.parametrize("k", range(1, 9))
def test_orders_give_each_place_and_each_successor_equally_often(k: int) -> None:
    orders = balanced_orders(k)
    places = Counter((place, candidate) for order in orders for place, candidate in enumerate(order))
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert all(sorted(order) == list(range(k)) for order in orders)
    assert len(places) == k * k and len(set(places.values())) == 1
    assert len(follows) == k * (k - 1) and len(set(follows.values())) <= 1


def test_two_candidates_go_a_b_b_a_on_one_fresh_input_per_round() -> None:
    clock, log = FakeClock(), list[tuple[str, int]]()
    calls = {"a": taking(clock, 0.002, log, "a"), "b": taking(clock, 0.001, log, "b")}
    samples = interleaved(calls, lambda i: i, rounds=4, warmup=0, clock=clock)
    assert log == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2), ("b", 3), ("a", 3)]
    assert samples.seconds["a"].tolist() == [0.002] * 4
    assert samples.ratio("a", "b").value == 2.0


def test_warmup_and_the_making_of_inputs_are_not_timed() -> None:
    clock, log, seen = FakeClock(), list[tuple[str, int]](), list[int]()

    def inputs(i: int) -> int:
        seen.append(i)
        clock.advance(5.0)
        return i

    def call(i: int) -> None:
        log.append(("a", i))
        clock.advance(9.0 if i < 2 else 0.25)

    samples = interleaved({"a": call}, inputs, rounds=3, warmup=2, clock=clock)
    assert seen == [0, 1, 2, 3, 4]
    assert samples.seconds["a"].tolist() == [0.25] * 3


@pytest.mark.parametrize(
    ("seconds", "limits", "expected"),
    [
        (0.0, (30, 2000), 30),  # the floor holds when time is up at once
        (0.5, (10, 2000), 252),  # 2 ms a round: on until time is up, then to the end of the cycle of 6 orders
        (60.0, (10, 100), 100),  # the ceiling
    ],
)
def test_time_limit(seconds: float, limits: tuple[int, int], expected: int) -> None:
    clock, log = FakeClock(), list[tuple[str, int]]()
    calls = {
        name: taking(clock, cost, log, name) for name, cost in (("a", 0.001), ("b", 0.0005), ("c", 0.0005))
    }
    samples = interleaved(
        calls, lambda i: i, seconds=seconds, min_rounds=limits[0], max_rounds=limits[1], clock=clock
    )
    assert samples.rounds == expected


def test_cold_first_calls_are_shared_fairly() -> None:
    """Whoever comes first in a round pays twice; equal candidates must still measure equal."""
    clock, warm = FakeClock(), set[int]()

    def call(i: int) -> None:
        clock.advance(0.001 if i in warm else 0.002)
        warm.add(i)

    names = ("a", "b", "c", "d")
    samples = interleaved(dict.fromkeys(names, call), lambda i: i, rounds=40, clock=clock)
    totals = {name: round(float(samples.seconds[name].sum()), 9) for name in names}
    assert set(totals.values()) == {0.05}
    assert all(samples.ratio("a", name).value == 1.0 for name in names)


def test_percentiles_are_numpys_and_p99_needs_299_calls() -> None:
    values = np.random.default_rng(3).lognormal(sigma=0.3, size=299)
    samples = Samples({"a": values})
    latency = samples.latency("a")
    assert (latency.p50, latency.p95, latency.p99) == tuple(np.quantile(values, (0.5, 0.95, 0.99)))
    assert latency.n == 299
    assert Samples({"a": values[:298]}).latency("a").p99 is None


@pytest.mark.parametrize("n", [30, 301])
def test_intervals_agree_with_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    shared = rng.lognormal(sigma=0.2, size=n)
    before, after = 2e-3 * shared * rng.lognormal(sigma=0.05, size=n), 1e-3 * shared
    samples = Samples({"before": before, "after": after})
    ratio = samples.ratio("before", "after")
    theirs = stats.bootstrap(
        (before, after),
        lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis),
        paired=True, vectorized=True, n_resamples=2000, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert ratio.low == pytest.approx(theirs.low, rel=0.01)
    assert ratio.high == pytest.approx(theirs.high, rel=0.01)
    assert ratio.low <= ratio.value <= ratio.high
    alone = stats.bootstrap(
        (before,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    latency = samples.latency("before")
    assert latency.low == pytest.approx(alone.low, rel=0.02)
    assert latency.high == pytest.approx(alone.high, rel=0.02)


def test_pairing_narrows_the_interval_when_rounds_drift_together() -> None:
    rng = np.random.default_rng(1)
    drift = np.repeat([1.0, 1.3, 1.6, 1.9], 25)
    noise = rng.lognormal(sigma=0.01, size=(2, 100))
    ratio = Samples({"a": drift * noise[0], "b": drift * noise[1]}).ratio("a", "b")
    assert 0.97 < ratio.low <= 1.0 <= ratio.high < 1.03
    alone = Samples({"a": drift * noise[0]}).latency("a")
    assert (alone.high - alone.low) / alone.p50 > 0.1


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Equal candidates: 1 lies outside in some 5 % of repeats, not in 20 %."""
    rng = np.random.default_rng(7)
    misses = 0
    for _ in range(200):
        a, b = rng.lognormal(sigma=0.1, size=(2, 60))
        ratio = Samples({"a": a, "b": b}).ratio("a", "b")
        misses += ratio.faster or ratio.slower
    assert 1 <= misses <= 20


def test_the_same_samples_give_the_same_interval_and_leave_the_global_generator_alone() -> None:
    samples = Samples(
        {"a": np.random.default_rng(0).random(100) + 1, "b": np.random.default_rng(1).random(100) + 1}
    )
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    assert samples.ratio("a", "b") == samples.ratio("a", "b")
    assert samples.latency("a") == samples.latency("a")
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]


def test_verdicts_need_the_whole_interval() -> None:
    fast, slow = np.full(50, 1e-3), np.full(50, 2e-3)
    samples = Samples({"fast": fast, "slow": slow, "same": fast})
    assert samples.ratio("slow", "fast").faster and not samples.ratio("slow", "fast").slower
    assert samples.ratio("fast", "slow").slower and not samples.ratio("fast", "slow").faster
    equal = samples.ratio("fast", "same")
    assert not equal.faster and not equal.slower


@pytest.mark.parametrize(
    ("low", "high", "unsure"),
    [(0.7, 3.1, True), (0.9, 1.2, True), (0.97, 1.04, False), (1.01, 3.1, False), (0.4, 0.99, False)],
)
def test_an_interval_is_undecided_where_it_is_wide_and_holds_1(low: float, high: float, unsure: bool) -> None:
    assert Ratio(min(2.0, high), low, high, 40).undecided is unsure


def test_one_round_states_no_more_than_it_knows() -> None:
    latency = Samples({"a": np.array([0.5])}).latency("a")
    assert (latency.n, latency.p50, latency.low, latency.high, latency.p99) == (1, 0.5, 0.5, 0.5, None)


def test_what_cannot_be_measured_is_refused_by_name() -> None:
    with pytest.raises(MeasurementError, match="empty"):
        interleaved({}, lambda i: i, rounds=1)
    with pytest.raises(MeasurementError, match="at least 1"):
        interleaved({"a": lambda i: i}, lambda i: i, rounds=0)
    with pytest.raises(MeasurementError, match="same number"):
        Samples({"a": np.ones(3), "b": np.ones(2)})
    with pytest.raises(MeasurementError, match="no candidate 'c'"):
        Samples({"a": np.ones(3)}).latency("c")
    with pytest.raises(MeasurementError, match="too coarse"):
        Samples({"a": np.ones(3), "b": np.zeros(3)}).ratio("a", "b")


def test_errors_of_a_call_pass_through() -> None:
    def broken(i: int) -> None:
        raise IndexError("row 7")

    with pytest.raises(IndexError, match="row 7"):
        interleaved({"a": broken}, lambda i: i, rounds=1)


def test_a_real_clock_measures_something() -> None:
    samples = interleaved(
        {"a": lambda i: sum(range(1000))}, lambda i: i, rounds=10, clock=time.perf_counter_ns
    )
    assert samples.latency("a").p50 > 0
