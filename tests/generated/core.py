"""What blocks of the generated models read, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Core", "Given", "History", "Plan", "joined", "picked"]


@dataclass(frozen=True)
class History:
    """Vectors of a history (N, T, d), and where it is no padding (N, T)."""

    rows: Tensor
    mask: Tensor


@dataclass
class Given:
    """What blocks read: `parts` holds one (N, k) for each field in order, `vectors` those of the model's width."""

    parts: list[Tensor] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)
    histories: list[History] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """The sizes of what will be given."""

    width: int
    widths: tuple[int, ...]
    request: tuple[bool, ...]
    tables: tuple[int, ...]
    vectors: int
    numbers: int
    histories: int


class Core(nn.Module):
    """A block without the layers after it; `width` is that of its answer."""

    width: int

    def __init__(self, block: Any, plan: Plan) -> None:
        super().__init__()
        self.block, self.plan = block, plan

    def parts(self) -> list[int]:
        return picked(self.block.of, len(self.plan.widths))

    def total(self, places: Sequence[int]) -> int:
        return sum(self.plan.widths[place] for place in places)

    def sides(self) -> tuple[list[int], list[int]]:
        """Two sets of fields: the request's and the candidate's, or those at even places and the rest."""
        places = self.parts()
        left = [place for place in places if self.plan.request[place]]
        if not self.block.by_colour or not 0 < len(left) < len(places):
            left = places[::2]
        return left, [place for place in places if place not in left] or left


def picked(of: Sequence[int], count: int, fewest: int = 1) -> list[int]:
    """Places in the order drawn, without repeats; all where there are too few."""
    places = list(dict.fromkeys(place % count for place in of))
    return places if len(places) >= fewest else list(range(count))


def joined(given: Given, places: Sequence[int]) -> Tensor:
    """Fields side by side."""
    return torch.cat([given.parts[place] for place in places], dim=-1)
