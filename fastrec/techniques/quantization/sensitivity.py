"""How far a graph's answers move when one of its nodes alone is computed otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from ...graph import copy_graph

__all__ = ["answers", "furthest", "moved", "moved_by"]


def moved_by(
    gm: fx.GraphModule,
    batches: Sequence[Sequence[Tensor]],
    edits: Mapping[str, Callable[[fx.GraphModule], object]],
) -> dict[str, float]:
    """What each of these edits, made to a copy of the graph, moves:

        |y' - y| / |y - mean of y|

    over the elements of all batches, the largest of the floating-point outputs. Cost: a run of each batch for each edit.
    """
    right = answers(gm, batches)
    found = {}
    for site, edit in edits.items():
        alone = copy_graph(gm)
        edit(alone)
        pairs = zip(answers(alone, batches), right, strict=True)
        found[site] = max((moved(new, old) for new, old in pairs), default=0.0)
    return found


def answers(gm: fx.GraphModule, batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The floating-point outputs, the elements of all batches one after the other."""
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        found = [[out.flatten() for out in gm(*batch) if out.is_floating_point()] for batch in batches]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def furthest(new: Sequence[Tensor], old: Sequence[Tensor]) -> float:
    """How far the answer that moved most did; infinite where one is no number any more."""
    found = [moved(after, before) for after, before in zip(new, old, strict=True)]
    return max(found, default=0.0) if all(map(math.isfinite, found)) else math.inf


def moved(new: Tensor, old: Tensor) -> float:
    """How far an answer moved, relative to its spread."""
    spread = float((old - old.mean()).norm()) or float(old.norm())
    off = float((new - old).norm())
    return off / spread if off else 0.0
