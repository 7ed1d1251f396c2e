"""Whether a candidate is slower than a reference by more than a margin, on a machine that others use as well.

Reference and candidate are each called twice in a round, on one fresh input, in the orders RCCR, CRRC, RCCR, CRRC with the
two calls of each changing places. In logarithms of seconds r1, r2 and c1, c2:

    ratio   = exp(mean over orders o, j and k of the median over rounds i in o of cj(i) - rk(i))
    control = exp(mean over orders o of the median over rounds i in o of r2(i) - r1(i)), 1 but for what the machine does

Two calls of a round share what slows the machine at that moment, so it cancels; a median is not moved by the rounds that were
interrupted; a median for each order keeps apart who found its input cold in the cache. Both are called equally often: of two
copies of one model the one that is called twice as often is up to 5 % faster, as the cache holds its weights.
Intervals (95 %) are of a bootstrap over blocks of neighbouring rounds: noise that lasts makes them as wide as it should.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import MeasurementError
from ..wording import duration
from .latency import RESAMPLES, SEED, Latency, Ratio, Samples, balanced_orders, interleaved
from .served import Call, call_of, fresh_batches, served

__all__ = ["CONTROL", "Gate", "Verdict", "compare"]

Array = npt.NDArray[np.float64]
Verdict = Literal["passed", "regression", "inconclusive"]

CONTROL = 0.02
"""How far the control may be from 1 before nothing that was measured beside it counts."""

# In this order the balanced orders are RCCR, CRRC and again.
_R1, _C1, _R2, _C2 = _NAMES = ("reference", "candidate", "control", "candidate again")
_CYCLE = len(balanced_orders(len(_NAMES)))
_FEWEST, _FIRST, _MOST = 8 * _CYCLE, 24 * _CYCLE, 1000 * _CYCLE


@dataclass(frozen=True)
class Gate:
    """What was found: the verdict, its reason, and the numbers.

    `ratio` is the candidate's time over the reference's: above 1, the candidate is slower. `control` is the reference's
    over its own, in the same rounds. Both give n rounds and the 95 % interval. `margin` is what the ratio was held to.
    `reference` and `candidate` give the seconds of a call.
    """

    verdict: Verdict
    ratio: Ratio
    control: Ratio
    reason: str
    reference: Latency
    candidate: Latency
    margin: float

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}"

    @property
    def lines(self) -> tuple[str, ...]:
        """The verdict, its reason and the medians, a line each."""
        medians = (
            f"{name} {duration(one.p50)}"
            for name, one in zip(_NAMES, (self.reference, self.candidate), strict=False)
        )
        return self.verdict, self.reason, f"median of {self.reference.n:,} calls: {', '.join(medians)}"

    @property
    def numbers(self) -> dict[str, float | int | str]:
        """The numbers by name, as `extra_info` of a benchmark holds them."""
        found: dict[str, float | int | str] = {
            "verdict": self.verdict,
            "margin": self.margin,
            "rounds": self.ratio.n,
        }
        for name, one in (("ratio", self.ratio), ("control", self.control)):
            found |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
        return found | {"reference_seconds": self.reference.p50, "candidate_seconds": self.candidate.p50}


def compare(
    reference: Callable[..., object],
    candidate: Callable[..., object],
    inputs: Any,
    *,
    margin: float = 0.05,
    seconds: float = 10.0,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Gate:
    """Whether `candidate` takes more than `1 + margin` times as long as `reference`.

    "regression": the lower end of the ratio's interval is above `1 + margin`. "passed": its upper end is not.
    "inconclusive": the interval holds `1 + margin`, or the control is more than 2 % off, so that the machine itself is
    in doubt; `reason` says which. Measuring goes on while inconclusive, until `seconds` have passed or 4,000 rounds are
    done, and at the least for 32 rounds.

    Both are modules (called without gradients), methods of them, or any callables. `inputs` is a list of batches, a callable that makes
    the i-th one outside the timing, or one batch; each is given as the model takes it: a tuple by position, a dict by name. A call must
    not change it. `clock` counts nanoseconds.

    Raises `MeasurementError` for a margin or a limit that is not positive, for inputs that are none and for calls too quick for the
    clock. Errors of a call pass through. Beyond the calls: some 0.2 s for each 1,000 rounds.

    Example:
        >>> ticks = iter(range(0, 10**9, 1000))
        >>> gate = compare(abs, abs, lambda i: -i, clock=lambda: next(ticks))
        >>> gate.verdict, gate.ratio.value, gate.ratio.n
        ('passed', 1.0, 96)
    """
    for name, value in (("margin", margin), ("seconds", seconds)):
        if not (math.isfinite(value) and value > 0):
            raise MeasurementError(f"{name} is {value!r}, expected a number above 0")
    batch, before, after = fresh_batches(inputs), served(reference), served(candidate)
    calls: dict[str, Callable[[tuple[Call, Call]], object]] = dict(
        zip(_NAMES, (lambda both: before(both[0]), lambda both: after(both[1])) * 2, strict=True)
    )

    def made(i: int) -> tuple[Call, Call]:
        given = batch(i)
        return call_of(reference, given), call_of(candidate, given)

    began, limit = clock(), seconds * 1e9
    # The fewest rounds first: they tell what a round takes.
    taken = interleaved(calls, made, rounds=_FEWEST, clock=clock).seconds
    while True:
        done, spent = len(taken[_R1]), clock() - began
        affordable = int((limit - spent) / max(spent / done, 1.0))
        over = affordable < _CYCLE or done >= _MOST
        if over or done >= _FIRST:
            gate = _judge(taken, margin)
            if over or gate.verdict != "inconclusive":
                return gate
        # Half as many again between looks: many looks at one question find by chance what is not there.
        wanted = max(_FIRST - done, done // 2)
        rounds = min(wanted, affordable, _MOST - done) // _CYCLE * _CYCLE
        start = done
        more = interleaved(calls, lambda i: made(start + i), rounds=rounds, warmup=0, clock=clock).seconds  # noqa: B023 - called before the loop goes on
        taken = {name: np.concatenate([taken[name], more[name]]) for name in _NAMES}


def _judge(seconds: Mapping[str, Array], margin: float) -> Gate:
    if min(float(values.min()) for values in seconds.values()) <= 0.0:
        raise MeasurementError(
            "the clock is too coarse for these calls: one took 0 s; give inputs with more rows"
        )
    r1, c1, r2, c2 = (seconds[name] for name in _NAMES)
    ratio, control = _paired([(c, r) for c in (c1, c2) for r in (r1, r2)]), _paired([(r2, r1)])
    verdict, reason = _verdict(ratio, control, margin)
    both = Samples({"reference": np.concatenate([r1, r2]), "candidate": np.concatenate([c1, c2])})
    return Gate(verdict, ratio, control, reason, both.latency("reference"), both.latency("candidate"), margin)


def _verdict(ratio: Ratio, control: Ratio, margin: float) -> tuple[Verdict, str]:
    most = 1 + margin
    seen = f"the candidate takes {_told(ratio)} times as long as the reference (n = {ratio.n:,} rounds)"
    beside = f"the reference against itself {control.value:.3f}"
    if abs(math.log(control.value)) > math.log1p(CONTROL):
        return "inconclusive", (
            f"the control is off: {beside}, expected within {CONTROL:.0%} of 1. What the machine did beside it moved the "
            f"timings as much; {seen}"
        )
    if ratio.low > most:
        return "regression", f"{seen}, the whole interval above {most:g}; {beside}"
    if ratio.high <= most:
        return "passed", f"{seen}, the whole interval within {most:g}; {beside}"
    return "inconclusive", f"the interval straddles the margin {most:g}: {seen}; {beside}"


def _told(ratio: Ratio) -> str:
    return f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _paired(pairs: Sequence[tuple[Array, Array]]) -> Ratio:
    """The ratio over all these pairs of columns, which took turns in whole cycles of orders, and its interval.

    Blocks of about the third root of the number of cycles are resampled.
    """
    logs = np.concatenate([np.log(above / below).reshape(-1, _CYCLE) for above, below in pairs], axis=1)
    cycles = len(logs)
    length = max(1, round(cycles ** (1 / 3)))
    starts = np.random.default_rng(SEED).integers(0, cycles, (RESAMPLES, -(-cycles // length)))
    blocks = (starts[:, :, None] + np.arange(length)) % cycles
    drawn = blocks.reshape(RESAMPLES, -1)[:, :cycles]
    found = np.mean([np.median(column[drawn], axis=1) for column in logs.T], axis=0)
    value = float(np.median(logs, axis=0).mean())
    low, high = (float(end) for end in np.quantile(found, (0.025, 0.975)))
    return Ratio(math.exp(value), math.exp(min(low, value)), math.exp(max(high, value)), cycles * _CYCLE)
