"""How long a call takes: candidates taking turns on fresh inputs, medians with bootstrap intervals.

On a shared machine the median of one candidate alone drifts by some 15 % from run to run; the ratio of two
that take turns call by call drifts by well under 1 %. So nothing here is timed alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import MeasurementError

__all__ = ["Latency", "Ratio", "Samples", "balanced_orders", "interleaved"]

T = TypeVar("T")

P99_CALLS = 299  # fewest calls whose largest lies beyond the 99th percentile with 95 % probability
RESAMPLES = 1000
WIDE = 1.25  # ends of an interval that are further apart than a busy machine leaves them in a few seconds
SEED = 20240229


@dataclass(frozen=True)
class Latency:
    """The latency of one candidate over `n` calls, in seconds.

    `low` and `high` are the 95 % bootstrap interval of the median `p50`. `p99` is None below 299 calls, where
    it would be a guess about the slowest call.
    """

    n: int
    p50: float
    p95: float
    p99: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """Median of the baseline over median of the candidate: above 1, the candidate is faster.

    `low` and `high` are the 95 % interval of a paired bootstrap: whole rounds are resampled, so what slowed
    both calls of a round cancels. `n` counts rounds.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def mean(cls, ratios: Sequence[Ratio]) -> Ratio:
        """The geometric mean of ratios measured apart, its interval from theirs: variances of logarithms add up.

        Example:
            >>> Ratio.mean([Ratio(2.0, 2.0, 2.0, 40), Ratio(8.0, 8.0, 8.0, 30)])
            Ratio(value=4.0, low=4.0, high=4.0, n=30)
        """
        value = math.exp(sum(math.log(ratio.value) for ratio in ratios) / len(ratios))
        down = math.hypot(*(math.log(ratio.value / ratio.low) for ratio in ratios)) / len(ratios)
        up = math.hypot(*(math.log(ratio.high / ratio.value) for ratio in ratios)) / len(ratios)
        return cls(value, value * math.exp(-down), value * math.exp(up), min(ratio.n for ratio in ratios))

    @property
    def faster(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.low > 1.0

    @property
    def slower(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.high < 1.0

    @property
    def undecided(self) -> bool:
        """Whether the interval holds 1 and is so wide that a gain worth having may hide in it: longer measuring would tell."""
        return not self.faster and not self.slower and self.high > WIDE * self.low


@dataclass(frozen=True)
class Samples:
    """The seconds of every timed call: one array per candidate, equal lengths, entry i from round i.

    Example:
        >>> import numpy as np
        >>> samples = Samples({"before": np.full(40, 0.004), "after": np.full(40, 0.001)})
        >>> samples.ratio("before", "after")
        Ratio(value=4.0, low=4.0, high=4.0, n=40)
        >>> samples.latency("after").p99 is None
        True
    """

    seconds: Mapping[str, npt.NDArray[np.float64]]

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in self.seconds.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise MeasurementError(
                f"every candidate needs the same number of timed rounds, at least one: {lengths}"
            )

    @property
    def rounds(self) -> int:
        """How many rounds were timed."""
        return len(next(iter(self.seconds.values())))

    def latency(self, name: str) -> Latency:
        """The percentiles of one candidate, with the bootstrap interval of its median.

        The interval is the same on every call: the bootstrap has its own fixed seed. Some 10 ms at 2,000 rounds.
        """
        values = self._of(name)
        p50, p95, p99 = (float(q) for q in np.quantile(values, (0.5, 0.95, 0.99)))
        low, high = _interval(_resampled_medians(values)[0])
        return Latency(len(values), p50, p95, p99 if len(values) >= P99_CALLS else None, low, high)

    def ratio(self, baseline: str, candidate: str) -> Ratio:
        """How many times faster `candidate` is than `baseline`.

        Raises `MeasurementError` when a median is zero: the clock is too coarse for the call. Some 30 ms at
        2,000 rounds.
        """
        before, after = self._of(baseline), self._of(candidate)
        medians = _resampled_medians(before, after)
        if medians.min() <= 0.0:
            raise MeasurementError(
                f"the clock is too coarse to compare {baseline!r} with {candidate!r}: a median of 0 s; time more "
                "rows per call"
            )
        low, high = _interval(medians[0] / medians[1])
        return Ratio(float(np.median(before) / np.median(after)), low, high, len(before))

    def _of(self, name: str) -> npt.NDArray[np.float64]:
        if name not in self.seconds:
            raise MeasurementError(
                f"no candidate {name!r} was timed, only {', '.join(map(repr, self.seconds))}"
            )
        return self.seconds[name]


def interleaved(
    calls: Mapping[str, Callable[[T], object]],
    inputs: Callable[[int], T],
    *,
    rounds: int | None = None,
    seconds: float = 10.0,
    min_rounds: int = 30,
    max_rounds: int = 2000,
    warmup: int = 3,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Samples:
    """Time every candidate in turn, round by round, each round on one fresh input.

    `inputs(i)` makes the i-th input outside the timing (i counts on from the warm-up rounds, so no input is
    seen twice unless `inputs` repeats itself). The first call of a round finds the rows of its input cold in the
    cache and the later calls find them warm, a difference of up to 20 %: the order follows `balanced_orders`, so
    that each candidate has each place, and comes right after each other, equally often.

    With `rounds`, exactly that many. Without, at least `min_rounds`, then on until `seconds` have passed or
    `max_rounds` are done, ending on a whole cycle of orders. The `warmup` rounds come first and are not kept.
    `clock` counts nanoseconds. Errors of a call pass through. A call must not change its input: the others get
    the same one.

    Example:
        >>> ticks = iter(range(0, 10**9, 1000))
        >>> calls = {"before": lambda x: x + 1, "after": lambda x: x}
        >>> samples = interleaved(calls, lambda i: i, rounds=40, clock=lambda: next(ticks))
        >>> samples.ratio("before", "after").value
        1.0
    """
    if not calls:
        raise MeasurementError("nothing to time: `calls` is empty")
    least, most = (min_rounds, max_rounds) if rounds is None else (rounds, rounds)
    if least < 1 or most < least:
        raise MeasurementError(
            f"cannot time between {least} and {most} rounds: at least 1, and no fewer than asked"
        )
    names = tuple(calls)
    orders = balanced_orders(len(names))
    taken: dict[str, list[int]] = {name: [] for name in names}
    for i in range(warmup):
        value = inputs(i)
        for k in orders[i % len(orders)]:
            calls[names[k]](value)
    began, limit = clock(), seconds * 1e9
    for i in range(most):
        whole = i % len(orders) == 0
        if rounds is None and i >= least and whole and clock() - began >= limit:
            break
        value = inputs(warmup + i)
        for k in orders[i % len(orders)]:
            name = names[k]
            call = calls[name]
            start = clock()
            call(value)
            taken[name].append(clock() - start)
    return Samples({name: np.asarray(values, dtype=np.float64) / 1e9 for name, values in taken.items()})


def balanced_orders(k: int) -> tuple[tuple[int, ...], ...]:
    """Orders of `k` candidates in which each has each place, and follows each other one, equally often.

    The rows of a Williams square: 0, 1, k-1, 2, k-2, ... and its rotations; for odd `k` also their reversals, as
    no square alone balances what follows what.

    Source: E. J. Williams, "Experimental designs balanced for the estimation of residual effects", 1949.

    Example:
        >>> balanced_orders(2)
        ((0, 1), (1, 0))
        >>> balanced_orders(4)
        ((0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1))
    """
    zigzag = tuple((j + 1) // 2 if j % 2 else (k - j // 2) % k for j in range(k))
    square = tuple(tuple((first + j) % k for j in zigzag) for first in range(k))
    if k % 2 == 0 or k == 1:
        return square
    return tuple(chain.from_iterable((row, row[::-1]) for row in square))


def _resampled_medians(*columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Medians of `RESAMPLES` bootstrap draws of rounds: (columns, RESAMPLES), the same draws for each column.

    Ranks are sorted in place of seconds: small integers sort some five times faster than floats.
    """
    n = len(columns[0])
    draws = np.random.default_rng(SEED).integers(0, n, (RESAMPLES, n), dtype=np.int32)
    small: Any = np.int16 if n <= np.iinfo(np.int16).max else np.int32
    medians = np.empty((len(columns), RESAMPLES))
    for row, values in zip(medians, columns, strict=True):
        order = np.argsort(values, kind="stable")
        ranks = np.empty(n, dtype=small)
        ranks[order] = np.arange(n)
        drawn = np.sort(ranks[draws], axis=1)
        ascending = values[order]
        row[:] = (ascending[drawn[:, (n - 1) // 2]] + ascending[drawn[:, n // 2]]) / 2
    return medians


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
