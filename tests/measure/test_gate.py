"""The gate on a clock that the test moves, with the noise of a shared machine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrec.errors import MeasurementError
from fastrec.measure.gate import Gate, compare
from fastrec.measure.latency import Ratio
from fastrec.measure.served import call_of, fresh_batches
from tests.fakes import FakeClock

Call = Callable[[int], None]


class Shared:
    """A machine that others use: jitter of 5 %, half the time (`share`) 1.5 times as slow for a while, a call in twenty
    interrupted, and inputs cold in the cache for whoever reads them first."""

    def __init__(self, seed: int, share: float = 0.5) -> None:
        self.share = share
        self.clock = FakeClock()
        self.rng = np.random.default_rng(seed)
        self.slow, self.seen = False, -1

    def call(self, seconds: float, noise: float = 1.0) -> Call:
        def run(i: int) -> None:
            if self.rng.random() < 1 / 40:
                self.slow = self.rng.random() < self.share
            taken = seconds * np.exp(0.05 * noise * self.rng.standard_normal()) * (1.5 if self.slow else 1.0)
            taken *= 1.15 if i != self.seen else 1.0
            taken += seconds * self.rng.exponential(5.0) if self.rng.random() < 0.05 else 0.0
            self.seen = i
            self.clock.advance(float(taken))

        return run


def gated(seed: int, factor: float, noise: float = 1.0, seconds: float = 3.0) -> Gate:
    machine = Shared(seed)
    calls = machine.call(0.001, noise), machine.call(0.001 * factor, noise)
    return compare(*calls, lambda i: i, seconds=seconds, clock=machine.clock)


def test_a_tenth_slower_is_caught_twenty_times_of_twenty() -> None:
    gates = [gated(seed, 1.10) for seed in range(20)]
    assert [gate.verdict for gate in gates] == ["regression"] * 20
    assert all(gate.ratio.low > 1.05 and abs(gate.ratio.value - 1.10) < 0.03 for gate in gates)


def test_equal_code_raises_no_alarm_in_twenty() -> None:
    gates = [gated(100 + seed, 1.0) for seed in range(20)]
    assert [gate.verdict for gate in gates] == ["passed"] * 20
    assert all(abs(gate.ratio.value - 1.0) < 0.02 for gate in gates)


def test_a_gain_passes() -> None:
    assert gated(7, 0.5).verdict == "passed"


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = sum(
        gate.ratio.low <= 1.02 <= gate.ratio.high for gate in (gated(300 + s, 1.02) for s in range(60))
    )
    assert 51 <= held <= 60


def test_measuring_goes_on_while_the_margin_is_within_the_interval() -> None:
    gate = gated(3, 1.05)
    assert gate.verdict == "inconclusive" and "straddles the margin 1.05" in gate.reason
    assert gate.ratio.n > 300 and gate.ratio.low <= 1.05 <= gate.ratio.high
    assert gated(3, 1.10).ratio.n < 200


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_nothing_counts_beside_a_control_that_is_off(factor: float) -> None:
    """A machine that slows what is called the control, though it is the reference itself."""
    clock, calls = FakeClock(), [-6]  # three rounds to warm up

    def reference(i: int) -> None:
        control = calls[0] % 8 in (1, 2, 4, 7)  # R1 R2, R2 R1, R2 R1, R1 R2
        calls[0] += 1
        clock.advance(0.00103 if control else 0.001)

    gate = compare(reference, lambda i: clock.advance(0.001 * factor), lambda i: i, seconds=2, clock=clock)
    assert gate.verdict == "inconclusive" and "the control is off" in gate.reason
    assert gate.control.value == pytest.approx(1.03) and gate.ratio.n > 300


def test_both_are_called_equally_often_and_change_places() -> None:
    clock, log = FakeClock(), list[tuple[str, int]]()

    def call(name: str) -> Call:
        def run(i: int) -> None:
            log.append((name, i))
            clock.advance(0.001)

        return run

    compare(call("r"), call("c"), lambda i: i, seconds=1e-9, clock=clock)
    kept = log[12:]  # three rounds to warm up
    rounds = ["".join(name for name, _ in kept[start : start + 4]) for start in range(0, len(kept), 4)]
    assert rounds == ["rccr", "crrc"] * 16
    assert [kept[start][1] for start in range(0, len(kept), 4)] == list(range(3, 35))


def test_time_is_the_limit_and_thirty_two_rounds_the_least() -> None:
    assert gated(3, 1.05, seconds=1e-9).ratio.n == 32
    gate = gated(3, 1.05, seconds=1.0)
    assert gate.verdict == "inconclusive" and 100 < gate.ratio.n < 200


def test_a_report_has_medians_intervals_and_n() -> None:
    gate = gated(1, 1.10)
    assert gate.reference.n == 2 * gate.ratio.n
    assert (gate.reference.p99 is None) == (gate.reference.n < 299)
    assert gate.lines[0] == "regression"
    for number in (
        f"{gate.ratio.value:.3f}",
        f"[{gate.ratio.low:.3f}, ",
        f"n = {gate.ratio.n:,} rounds",
        f"{gate.control.value:.3f}",
    ):
        assert number in gate.lines[1]
    assert gate.numbers["ratio_low"] == gate.ratio.low and gate.numbers["verdict"] == "regression"
    assert isinstance(gate.control, Ratio) and str(gate).startswith("regression: the candidate takes 1.")


def test_what_cannot_be_gated_is_refused_by_name() -> None:
    with pytest.raises(MeasurementError, match="margin is 0"):
        compare(abs, abs, lambda i: -i, margin=0)
    with pytest.raises(MeasurementError, match="seconds is inf"):
        compare(abs, abs, lambda i: -i, seconds=float("inf"))
    with pytest.raises(MeasurementError, match="too coarse"):
        compare(abs, abs, lambda i: -i, clock=FakeClock())


def test_batches_come_each_in_turn_and_in_another_order_each_time() -> None:
    batch = fresh_batches(["a", "b", "c", "d", "e"])
    times = ["".join(batch(i) for i in range(start, start + 5)) for start in range(0, 50, 5)]
    assert all(sorted(one) == list("abcde") for one in times) and len(set(times)) > 5
    assert fresh_batches("a")(7) == "a" and fresh_batches(lambda i: i * i)(7) == 49
    with pytest.raises(MeasurementError, match="empty list"):
        fresh_batches([])
    with pytest.raises(MeasurementError, match="inputs is None: give a batch"):
        compare(len, len, None)


@pytest.mark.parametrize(
    "inputs",
    [(1, 2), {"user": 1, "item": 2}, [(1, 2), {"user": 1, "item": 2}], lambda i: (1, 2)],
    ids=["tuple", "dict", "list", "callable"],
)
def test_inputs_are_what_the_fixture_takes(inputs: object) -> None:
    clock, seen = FakeClock(), set[tuple[int, int]]()

    def by_name(user: int, item: int) -> None:
        seen.add((user, item))
        clock.advance(0.001)

    assert compare(by_name, by_name, inputs, seconds=1e-9, clock=clock).verdict == "passed"
    assert seen == {(1, 2)}


def test_modules_are_timed_without_gradients() -> None:
    clock, graded = FakeClock(), list[bool]()

    class Timed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            clock.advance(0.001)
            answer = super().forward(x)
            graded.append(answer.requires_grad)
            return answer

    compare(Timed(3, 1), Timed(3, 1), torch.randn(4, 3), seconds=1e-9, clock=clock)
    assert graded and not any(graded)


def test_batches_are_given_as_models_take_them() -> None:
    def by_name(user: int, item: int) -> int:
        return user + item

    assert call_of(by_name, (1, 2)) == ((1, 2), {})
    assert call_of(by_name, {"user": 1, "item": 2}) == ((), {"user": 1, "item": 2})
    assert call_of(len, "abc") == (("abc",), {})
