"""The plan: which session serves which number of rows, chosen by measuring.

The original is a candidate like any other, so a plan is never slower than it: a session takes over only where
it was faster on inputs that did not choose it.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from .measure.latency import Ratio, Samples, interleaved
from .report import SizeResult, Trial

__all__ = [
    "ORIGINAL",
    "WORTH",
    "Batches",
    "Call",
    "Plan",
    "affordable",
    "as_original",
    "better",
    "choose",
    "compared",
    "confirm",
    "leaders",
    "preferred",
    "remaining",
    "share",
    "worth_it",
]

ORIGINAL = "original"
"""What the original is called among the candidates."""

WORTH = 1.02
"""A gain below this is not worth another path through the code, and within what a machine drifts."""
# Nor is one below this worth answers that differ.
_AS_FAST = 1.03
_HELD_OUT = 1 << 20

Flat = list[Tensor]
Call = Callable[[Flat], object]
Batches = Callable[[int, int], Flat]


@dataclass(frozen=True)
class Plan:
    """The name of the session for each measured number of rows; others take that of the nearest, by ratio.

    Example:
        >>> plan = Plan((1, 100), ("eager", "openvino"))
        >>> plan.name_for(9), plan.name_for(11), plan.name_for(100_000)
        ('eager', 'openvino', 'openvino')
    """

    sizes: tuple[int, ...]
    names: tuple[str, ...]

    def name_for(self, rows: int) -> str:
        """The session that serves `rows` rows."""
        cuts = [(low * high) ** 0.5 for low, high in zip(self.sizes, self.sizes[1:], strict=False)]
        return self.names[bisect.bisect_left(cuts, rows)]


def choose(
    rows: int,
    original: Call,
    sessions: Mapping[str, Call],
    batches: Batches,
    seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> tuple[str, list[Trial]]:
    """The session with the lowest median at `rows` rows, and what was seen of each."""
    calls: dict[str, Call] = {ORIGINAL: original, **sessions}
    cost = _cost([*calls.values()], batches(rows, 0))
    # A first look drops what is far behind, so that the time goes to what may win.
    first = interleaved(
        calls,
        lambda i: batches(rows, i),
        seconds=seconds * 0.3,
        min_rounds=_rounds(seconds * 0.3, cost, 3, 6),
        max_rounds=60,
        warmup=1,
        clock=clock,
    )
    medians = {name: first.latency(name).p50 for name in calls}
    best = min(medians.values())
    close = {name: call for name, call in calls.items() if name == ORIGINAL or medians[name] <= 1.3 * best}
    second = interleaved(
        close,
        lambda i: batches(rows, 1000 + i),
        seconds=seconds * 0.7,
        min_rounds=_rounds(seconds * 0.7, cost, 4, 12),
        max_rounds=400,
        warmup=1,
        clock=clock,
    )
    trials = []
    for name in sessions:
        samples: Samples = second if name in close else first
        reason = "" if name in close else "far behind the fastest"
        speedup = samples.ratio(ORIGINAL, name).value
        trials.append(Trial(rows, name, samples.latency(name).p50, speedup, reason))
    winner = min(close, key=lambda name: second.latency(name).p50)
    return winner, trials


def preferred(trials: Sequence[Trial], *first: Collection[str]) -> str:
    """The fastest session; of those within what a machine drifts of it one of those to take `first`, where there is one."""
    medians = {trial.session: trial.p50 for trial in trials if trial.p50 is not None}
    best = min(medians.values())
    for names in first:
        close = [name for name in names if name in medians and medians[name] <= _AS_FAST * best]
        if close:
            return min(close, key=lambda name: medians[name])
    return min(medians, key=lambda name: medians[name])


def compared(
    rows: int, calls: Mapping[str, Call], batches: Batches, seconds: float, first: int = 3000
) -> Samples:
    """What the calls take at `rows` rows, on batches from number `first` on."""
    return interleaved(
        calls,
        lambda i: batches(rows, first + i),
        seconds=seconds,
        min_rounds=_rounds(seconds, _cost([*calls.values()], batches(rows, 0)), 4, 12),
        max_rounds=400,
        warmup=1,
    )


def leaders(rows: int, calls: Mapping[str, Call], batches: Batches, seconds: float) -> list[str]:
    """The call with the lowest median at `rows` rows at a short look, and those within a tenth of it."""
    seen = interleaved(
        calls, lambda i: batches(rows, 2000 + i), seconds=seconds, min_rounds=3, max_rounds=60, warmup=1
    )
    medians = {name: seen.latency(name).p50 for name in calls}
    return [name for name, median in medians.items() if median <= 1.1 * min(medians.values())]


def confirm(rows: int, name: str, before: Call, after: Call, batches: Batches, seconds: float) -> SizeResult:
    """Before and after at `rows` rows, on inputs that no choice has seen."""
    samples = interleaved(
        {"before": before, "after": after},
        lambda i: batches(rows, _HELD_OUT + i),
        seconds=seconds,
        min_rounds=_rounds(seconds, _cost([before, after], batches(rows, 0)), 6, 40),
        max_rounds=1000,
        warmup=1,
    )
    return SizeResult(
        rows, samples.latency("before"), samples.latency("after"), samples.ratio("before", "after"), name
    )


def as_original(result: SizeResult) -> SizeResult:
    """The result at a size that the original serves."""
    return SizeResult(
        result.rows,
        result.before,
        result.before,
        Ratio(1.0, 1.0, 1.0, result.before.n),
        ORIGINAL,
        result.undecided,
    )


def better(session: SizeResult, original: SizeResult) -> SizeResult:
    """Of a session and the original, both as they are called with their checks in front, the faster one; the original unless that is worth it."""
    worth = session.speedup.value >= WORTH * original.speedup.value
    return session if worth else replace(original, tried=session.undecided)


def worth_it(result: SizeResult) -> bool:
    """Whether a session earned its place."""
    return result.speedup.faster and result.speedup.value >= WORTH


def remaining(deadline: float) -> float:
    """Seconds left."""
    return max(0.0, deadline - time.perf_counter())


def share(deadline: float, parts: Sequence[object], at_most: float) -> float:
    """An equal share of the time that is left, within reason."""
    return max(0.05, min(at_most, remaining(deadline) / max(1, len(parts))))


def affordable(call: Call, batch: Flat, sessions: int, deadline: float) -> bool:
    """Whether the fewest calls that tell anything fit in about the time that is left."""
    return 20 * sessions * _cost([call], batch) < max(1.0, remaining(deadline))


def _cost(calls: Sequence[Call], batch: Flat) -> float:
    """Seconds that one round of these calls takes, about."""
    began = time.perf_counter()
    for call in calls:
        call(batch)
    return time.perf_counter() - began


def _rounds(seconds: float, cost: float, fewest: int, wanted: int) -> int:
    """How many rounds to insist on: as many as wanted where calls are quick, the fewest where they are slow."""
    return max(fewest, min(wanted, int(seconds / max(cost, 1e-9))))
