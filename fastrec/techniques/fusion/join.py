"""A join in two parts, and selections along a dimension: the data that readers of joins work with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit, is_call, operator_name, value
from .once import dimension

__all__ = ["SPLITS", "Join", "picks", "rescaled", "take"]

aten = torch.ops.aten
SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
"""Calls whose results are the pieces of their argument along a dimension."""


@dataclass(frozen=True)
class Join:
    """`once` (1 along `rows`) and `each` (N along `rows`), side by side along `axis` in this order."""

    axis: int
    rows: int
    once: fx.Node
    each: fx.Node
    order: tuple[int, ...]

    @property
    def width(self) -> int:
        """Positions of `once` along the axis."""
        return int(value(self.once).shape[self.axis])

    @property
    def plain(self) -> bool:
        """Whether each position of the parts stands in the join exactly once."""
        return sorted(self.order) == list(range(self.width + int(value(self.each).shape[self.axis])))

    def places(self) -> tuple[list[int], list[int]]:
        """The positions in the join that come from `once`, and those from `each`, in the parts' own order."""
        where = sorted(range(len(self.order)), key=lambda k: self.order[k])
        return [k for k in where if self.order[k] < self.width], [
            k for k in where if self.order[k] >= self.width
        ]


def take(gm: fx.GraphModule, node: fx.Node, axis: int, positions: Sequence[int]) -> fx.Node:
    """`node[..., positions, ...]`, a view where they are neighbours."""
    if list(positions) == list(range(value(node).shape[axis])):
        return node
    if list(positions) == list(range(positions[0], positions[0] + len(positions))):
        return emit(gm, aten.slice.Tensor, (node, axis, positions[0], positions[0] + len(positions)))
    index = add_constant(gm, "positions", torch.tensor(list(positions)))
    return emit(gm, aten.index_select.default, (node, axis, index))


def picks(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, int, list[int], bool] | None:
    """The source of a selection, its dimension, the positions, and whether the dimension is dropped."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source, name = node.args[0], operator_name(node)
    whole = source
    if name == "getitem" and is_call(source, *SPLITS, aten.unbind.int):
        source = source.args[0]  # type: ignore[assignment]  # an argument of a node is of any type
    if not isinstance(source.meta.get("val"), Tensor) or not isinstance(node.meta.get("val"), Tensor):
        return None
    shape = value(source).shape
    if name in ("select", "slice", "index_select"):
        axis = dimension(node, 1) % len(shape)
    elif name == "getitem" and whole is not source:
        axis = dimension(whole, 1 if is_call(whole, aten.unbind.int) else 2) % len(shape)
    else:
        return None
    if not isinstance(shape[axis], int):
        return None
    every = range(shape[axis])
    if name == "select":
        return (source, axis, [every[node.args[2]]], True) if isinstance(node.args[2], int) else None
    if name == "slice":
        bounds: tuple[Any, ...] = (*node.args[2:], *(None, None, 1)[len(node.args) - 2 :])
        return (
            None
            if any(isinstance(b, fx.Node) for b in bounds)
            else (source, axis, list(every[slice(*bounds)]), False)
        )
    if name == "index_select":
        index = constant(gm, node.args[2])
        return (
            None
            if index is None or index.ndim != 1
            else (source, axis, [every[int(k)] for k in index], False)
        )
    piece = node.args[1]
    if not isinstance(piece, int):
        return None
    if is_call(whole, aten.unbind.int):
        return source, axis, [every[piece]], True
    widths = [int(part.shape[axis]) for part in whole.meta["val"]]
    start = sum(widths[:piece])
    return source, axis, list(every[start : start + widths[piece]]), False


def rescaled(order: tuple[int, ...], old: int, new: int) -> tuple[int, ...] | None:
    """The order of finer or coarser positions."""
    if new % old == 0:
        times = new // old
        return tuple(times * k + i for k in order for i in range(times))
    if old % new:
        return None
    times = old // new
    blocks = [order[times * k : times * (k + 1)] for k in range(new)]
    if any(block[0] % times or list(block) != list(range(block[0], block[0] + times)) for block in blocks):
        return None
    return tuple(block[0] // times for block in blocks)
