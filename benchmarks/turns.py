"""Turn-taking between many libraries: `fastrec.measure.interleaved`, with a call to settle before each timed one.

Eight ways to serve in one process drive each other's code and weights out of the caches: ONNX Runtime's 60 us at N=1,
alone, became 80 beside one other, 105 beside four. A service runs one model. So a turn is two calls of the same way on two
different fresh inputs, and the second is timed: its code and dense weights are as warm as in service, its rows as cold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from fastrec.measure import Samples
from fastrec.measure.latency import balanced_orders

__all__ = ["take_turns"]

T = TypeVar("T")


def take_turns(
    calls: Mapping[str, Callable[[T], object]],
    inputs: Callable[[], T],
    *,
    seconds: float,
    min_rounds: int = 36,
    max_rounds: int = 2000,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Samples:
    """Time `calls` in turn until `seconds` have passed, but at least `min_rounds` rounds.

    `inputs()` draws a fresh input, outside the timing; each round draws two, one to settle on and one to time.
    Every call has each place in a round, and follows each other one, equally often.
    """
    names = tuple(calls)
    orders = balanced_orders(len(names))
    taken: dict[str, list[int]] = {name: [] for name in names}
    began = clock()
    for i in range(max_rounds):
        if i >= min_rounds and i % len(orders) == 0 and clock() - began >= seconds * 1e9:
            break
        first, second = inputs(), inputs()
        for k in orders[i % len(orders)]:
            call = calls[names[k]]
            call(first)
            start = clock()
            call(second)
            taken[names[k]].append(clock() - start)
    return Samples({name: np.asarray(values, dtype=np.float64) / 1e9 for name, values in taken.items()})
