"""How many units each group keeps: the fewest multiply-adds for the least that the answers move.

Groups are narrowed step by step, each time the one whose next step moves the answers least for the multiply-adds that it saves,

    (s_g(k')^2 - s_g(k)^2) / (M - M')          s_g(k): what the answers move with k units in group g alone

until no more than a share of them is left. Squares, as what groups move adds up like noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Map", "levels", "narrowed", "work"]

_FINE = 8


@dataclass(frozen=True)
class Map:
    """A linear map: its multiply-adds, the group it writes, if any, and how many columns of each group (or none) it reads."""

    products: float
    writes: str | None
    reads: Sequence[tuple[str | None, int]]


def levels(width: int, step: int) -> list[int]:
    """The widths that a group may be narrowed to, widest first: multiples of `step`, about an eighth of it apart.

    Example:
        >>> levels(100, 16), levels(400, 16)
        ([96, 80, 64, 48, 32, 16], [352, 304, 256, 208, 160, 112, 64, 16])
    """
    apart = max(1, round(width / _FINE / step)) * step
    first = (width - 1) // step * step
    if apart > step:
        first = (width - apart) // step * step
    found = list(range(first, 0, -apart))
    return found if not found or found[-1] == step else [*found, step]


def work(maps: Sequence[Map], full: Mapping[str, int], kept: Mapping[str, int]) -> float:
    """Multiply-adds of all maps with so many units in each group, of those that it has."""

    def share(group: str | None) -> float:
        return kept[group] / full[group] if group is not None and group in full else 1.0

    total = 0.0
    for one in maps:
        columns = sum(count for _, count in one.reads)
        read = sum(count * share(group) for group, count in one.reads) / columns
        total += one.products * share(one.writes) * read
    return total


def narrowed(
    maps: Sequence[Map],
    full: Mapping[str, int],
    curves: Mapping[str, Mapping[int, float]],
    keep: float,
) -> dict[str, int]:
    """The units of each group with which at most a share `keep` of the multiply-adds is left, or the fewest there can be.

    `curves` gives, for each group, what the answers move at each of its levels.

    Example:
        >>> maps = [Map(64, "a", [(None, 8)]), Map(64, "b", [("a", 8)]), Map(8, None, [("b", 8)])]
        >>> narrowed(maps, {"a": 8, "b": 8}, {"a": {4: 0.5}, "b": {4: 0.1}}, 0.8)
        {'a': 8, 'b': 4}
    """
    kept = dict(full)
    count: Callable[[Mapping[str, int]], float] = lambda at: work(maps, full, at)  # noqa: E731 - said in one place
    whole = count(kept)
    while count(kept) > keep * whole:
        now, steps = count(kept), []
        for group, curve in curves.items():
            below = [width for width in curve if width < kept[group]]
            if below:
                width = max(below)
                saved = now - count({**kept, group: width})
                more = curve[width] ** 2 - curve.get(kept[group], 0.0) ** 2
                price = more / saved if saved > 0 and math.isfinite(more) else math.inf
                # Of those that are missed alike, the one of which most is left.
                steps.append((price, -kept[group] / full[group], group, width))
        if not steps:
            break
        _, _, group, width = min(steps)
        kept[group] = width
    return kept
