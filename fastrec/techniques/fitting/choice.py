"""One of several ways for each of many things, so that together they take few enough bytes and lose least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Cost", "cheapest"]


class Cost(NamedTuple):
    """What one way takes and what it loses."""

    bytes: int
    loss: float


def cheapest(things: Sequence[Sequence[Cost]], limit: int) -> list[int]:
    """Which way to take for each thing: the sum of losses is small and the sum of bytes at most `limit`.

        min  sum_i loss_i(w_i)   subject to   sum_i bytes_i(w_i) <= limit

    Each thing begins with its way of least loss. Then the step that saves a byte for the least loss is taken, of all
    steps of all things, until the bytes are few enough; what the last step saved too much goes back to the steps that
    regain most. Where no choice is small enough, everything is as small as it can be. Within one step of the best
    choice: the steps lie on the lower hull of each thing.

    Example:
        >>> ways = [Cost(100, 0.0), Cost(50, 0.1), Cost(10, 5.0)], [Cost(100, 0.0), Cost(40, 0.3)]
        >>> cheapest(ways, 200), cheapest(ways, 100), cheapest(ways, 1)
        ([0, 0], [1, 1], [2, 1])
    """
    taken = [min(range(len(ways)), key=lambda w: (ways[w].loss, ways[w].bytes)) for ways in things]
    size = sum(ways[w].bytes for ways, w in zip(things, taken, strict=True))
    while size > limit:
        steps = [
            (_price(ways[w], other), i, j)
            for i, (ways, w) in enumerate(zip(things, taken, strict=True))
            for j, other in enumerate(ways)
            if other.bytes < ways[w].bytes
        ]
        if not steps:
            break
        # Of equal prices the longest step: what lies between is no better.
        _, i, j = min(steps, key=lambda step: (step[0], things[step[1]][step[2]].bytes))
        size += things[i][j].bytes - things[i][taken[i]].bytes
        taken[i] = j
    return _regained(things, taken, limit - size)


def _price(now: Cost, then: Cost) -> float:
    """The loss for each byte saved."""
    return (then.loss - now.loss) / (now.bytes - then.bytes)


def _regained(things: Sequence[Sequence[Cost]], taken: list[int], left: int) -> list[int]:
    """The choice after what `left` bytes can still buy, the most loss at a time."""
    while True:
        gains = [
            (ways[w].loss - other.loss, i, j)
            for i, (ways, w) in enumerate(zip(things, taken, strict=True))
            for j, other in enumerate(ways)
            if other.loss < ways[w].loss and other.bytes - ways[w].bytes <= left
        ]
        if not gains:
            return taken
        _, i, j = max(gains, key=lambda gain: gain[0])
        left -= things[i][j].bytes - things[i][taken[i]].bytes
        taken[i] = j
