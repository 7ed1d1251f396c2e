"""Hidden units as pruning sees them, in a captured graph or in modules: which there are, the maps around them, and the model without some."""

from __future__ import annotations

import abc
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...program import Program
from ..base import Skip
from ..quantization.sensitivity import moved

__all__ = ["RULE", "Fits", "Group", "Kept", "LinearMap", "Prunable", "far"]

RULE = "prune neurons"
"""What skips and changes are called."""

Kept = Mapping[str, Tensor]
"""By the site of a group, its units that stay (n,), sorted; groups not named keep all."""

Fits = Mapping[str, tuple[Tensor, Tensor]]
"""By the name of a map, its weights of the columns that are left (O, I') and what is added to its bias (O,)."""

_JUDGED = 2048  # rows on which answers are compared


@dataclass(frozen=True)
class Group:
    """Units that go together: those of the maps `writers`, the first of which is the site; why they stay, if they must."""

    site: str
    width: int
    writers: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True)
class LinearMap:
    """A map around units, as it was at first.

    `places` are the columns (units, m) of its weight (O, I) that hold each unit of the groups it reads, `writes` the group that
    its results are of, `products` its multiply-adds, `alike` the same for maps of one weight.
    """

    name: str
    weight: Tensor
    places: Mapping[str, Tensor]
    writes: str | None
    products: float
    alike: Hashable

    def left(self, kept: Kept) -> Tensor:
        """The columns (I',) that are left."""
        stays = torch.ones(self.weight.shape[1], dtype=torch.bool)
        for site, places in self.places.items():
            if site in kept:
                stays[places.flatten()] = False
                stays[places[kept[site]].flatten()] = True
        return stays.nonzero().flatten()


class Prunable(abc.ABC):
    """A program's units: `groups` in order, `maps` by name around those that can be cut, `skipped` where none can, `batches` its calibration."""

    groups: Sequence[Group]
    maps: Mapping[str, LinearMap]
    skipped: tuple[Skip, ...] = ()
    batches: Sequence[Sequence[Tensor]]

    def __init__(self, program: Program) -> None:
        self.program = program

    @abc.abstractmethod
    def rows(self, program: Program, groups: Iterable[Group]) -> dict[str, Tensor]:
        """Rows (n, I') of what each map that reads these units is given on the calibration, here or in what `without` made of it."""

    @abc.abstractmethod
    def sloped(self, groups: Iterable[Group]) -> dict[str, tuple[Tensor, Tensor]]:
        """Rows (n, I) of what each map that reads these units is given, and the slopes (n, I) of the answers by them."""

    @abc.abstractmethod
    def without(self, kept: Kept, fits: Fits) -> Program:
        """The program with these units and weights; tensors that are not cut are shared."""

    @abc.abstractmethod
    def finished(self, kept: Kept, fits: Fits, seen: Iterable[Group]) -> tuple[nn.Module, dict[str, int]]:
        """The model with these units and weights, in which those `seen` are found pruned; the bytes made for each group."""

    def readers(self, group: Group) -> list[LinearMap]:
        """The maps that read a group's units."""
        return [one for one in self.maps.values() if group.site in one.places]

    def writers(self, group: Group) -> list[Tensor]:
        """The weights (units, I) that write a group's units."""
        return [self.maps[name].weight for name in group.writers]

    def answers(self, program: Program) -> list[list[Tensor]]:
        """Each answer to the first batches, of some thousands of rows together."""
        found, rows = [], 0
        with torch.random.fork_rng(devices=()):
            for batch in self.batches:
                found.append([answer.detach() for answer in program.answers(batch)])
                rows += max((len(tensor) for tensor in batch if tensor.ndim), default=1)
                if rows >= _JUDGED:
                    break
        return found


def far(new: Sequence[Sequence[Tensor]], old: Sequence[Sequence[Tensor]]) -> float:
    """How far answers moved, relative to their spread: the largest of the outputs.

        |y' - y| / |y - mean of y|          of those that are no numbers, where there are no others, the share that is another

    Infinite where they are of other shapes or no numbers any more.
    """
    alike = [[out.shape for out in batch] for batch in new] == [[out.shape for out in batch] for batch in old]
    if not alike:
        return math.inf
    pairs = [
        (torch.cat([out.flatten() for out in a]), torch.cat([out.flatten() for out in b]))
        for a, b in zip(zip(*new, strict=True), zip(*old, strict=True), strict=True)
    ]
    numbers = [moved(a, b) for a, b in pairs if b.is_floating_point()]
    others = [float((a != b).double().mean()) for a, b in pairs if b.numel()]
    found = max(numbers or others, default=0.0)
    return found if math.isfinite(found) else math.inf
