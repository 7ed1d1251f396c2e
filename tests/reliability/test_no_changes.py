"""T21: where nothing is changed, nothing is gained."""

from __future__ import annotations

from functools import partial

import pytest
from torch import Tensor

from fastrec import plan
from fastrec.measure.latency import interleaved
from tests.measure.test_gate import Shared


def test_no_changes_are_no_gain_in_twenty_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code before and after, on a machine that is slow a quarter of the time: within 0.97 and 1.03, and the original serves."""
    speedups = []
    for seed in range(20):
        machine = Shared(500 + seed, share=0.25)
        monkeypatch.setattr(plan, "interleaved", partial(interleaved, clock=machine.clock))
        run = machine.call(0.001)

        def call(flat: list[Tensor], run: object = run) -> None:
            run(flat[0])  # type: ignore[operator]

        result = plan.confirm(8, "session", call, call, lambda rows, i: [i], 3.0)  # type: ignore[list-item]
        assert result.before.n >= 300
        assert not plan.worth_it(result) and plan.as_original(result).verdict == "no difference"
        speedups.append(result.speedup.value)
    assert max(abs(value - 1) for value in speedups) <= 0.03
