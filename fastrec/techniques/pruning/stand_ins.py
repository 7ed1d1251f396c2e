"""What stands in for a block that was dropped, x + f(x): f by a vector, by a scale of each channel, or by a linear map.

    mean      f ~ c                y = x + c                      c (d,)
    scale     f ~ s * x + c        y = (1 + s) * x + c            s, c (d,)
    linear    f ~ V x + c          y = (I + V) x + c              V (d, d), c (d,)

each the least squares of the calibration, and each one call or two. Where the sum has other parts beside x they stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from ...graph import add_constant, copy_graph, emit, sweep, value
from ..quantization.calibration import inputs_of
from .least_squares import affine
from .residuals import Block

__all__ = ["KINDS", "Kind", "StandIn", "fit", "put", "rows_of"]

aten = torch.ops.aten

Kind = Literal["mean", "scale", "linear"]
KINDS: tuple[Kind, ...] = ("mean", "scale", "linear")
"""From cheap to dear."""
# Of the variance of a channel, as in `least_squares`.
_RIDGE = 1e-3
# Rows for each number that is fitted to a channel.
_ROWS = 4


@dataclass(frozen=True)
class StandIn:
    """f ~ weight x + bias: weight (d, d), or (d,) by channel, or none."""

    weight: Tensor | None
    bias: Tensor


def rows_of(
    gm: fx.GraphModule, wanted: Iterable[tuple[str, int]], batches: Sequence[Sequence[Tensor]]
) -> dict[tuple[str, int], Tensor]:
    """Rows (n, d) of the values of nodes by their names, d along the axis that is given; the same rows of values of one shape."""
    copy = copy_graph(gm)
    nodes = {node.name: node for node in copy.graph.nodes}
    turned = {}
    for name, axis in dict.fromkeys(wanted):
        turned[name, axis] = nodes[name]
        if axis != -1:
            with copy.graph.inserting_after(nodes[name]):
                turned[name, axis] = emit(copy, aten.transpose.int, (nodes[name], axis, -1))
    rows = inputs_of(copy, turned.values(), batches)
    return {key: rows[node] for key, node in turned.items()}


def fit(x: Tensor, goal: Tensor, kind: Kind) -> StandIn | str:
    """What brings rows x (n, d) nearest to rows (n, d) of what f gives, or why calibration cannot say."""
    if not bool(x.isfinite().all()) or not bool(goal.isfinite().all()):
        return "calibration gave it values that are not finite"
    needed = _ROWS * {"mean": 1, "scale": 2, "linear": 1 + x.shape[1]}[kind]
    if len(x) < needed:
        return f"calibration gives it {len(x):,} rows, for this stand-in {needed:,} are needed"
    if kind == "linear":
        return StandIn(*affine(x, goal))
    x, goal = x.double(), goal.double()
    if kind == "mean":
        return StandIn(None, goal.mean(0))
    centred = x - x.mean(0)
    variance = centred.square().mean(0)
    shared = (centred * goal).mean(0)
    scale = torch.where(variance > 0, shared / (variance * (1 + _RIDGE)).clamp_min(1e-30), 0.0)
    return StandIn(scale, goal.mean(0) - scale * x.mean(0))


def put(gm: fx.GraphModule, block: Block, made: StandIn) -> int:
    """Puts the stand-in in the place of the block; edits `gm`. The bytes of the constants it adds."""
    alone = block.rest is block.x
    weight, bias = made.weight, made.bias
    added = 0

    def held(name: str, tensor: Tensor) -> fx.Node:
        nonlocal added
        tensor = tensor.float().contiguous()
        added += tensor.nbytes
        return add_constant(gm, f"{block.add.name}_{name}", tensor)

    def along(tensor: Tensor) -> Tensor:
        return tensor if block.axis == -1 else tensor.reshape(-1, *[1] * (value(block.add).ndim - 2))

    with gm.graph.inserting_before(block.add):
        result = block.x
        if weight is not None and weight.ndim == 2:
            eye = torch.eye(len(weight), dtype=weight.dtype)
            constants = (held("map", weight + eye * alone), held("bias", bias))
            result = _turned(gm, block, result)
            result = emit(gm, aten.linear.default, (result, *constants))
            result = _turned(gm, block, result)
            if not alone:
                result = emit(gm, aten.add.Tensor, (block.rest, result))
        else:
            if weight is not None:
                result = emit(gm, aten.mul.Tensor, (result, held("scale", along(weight + alone))))
                if not alone:
                    result = emit(gm, aten.add.Tensor, (block.rest, result))
            else:
                result = block.rest
            result = emit(gm, aten.add.Tensor, (result, held("bias", along(bias))))
    block.add.replace_all_uses_with(result)
    gm.graph.erase_node(block.add)
    sweep(gm)
    return added


def _turned(gm: fx.GraphModule, block: Block, node: fx.Node) -> fx.Node:
    """The value with channels last, and back."""
    return node if block.axis == -1 else emit(gm, aten.transpose.int, (node, block.axis, -1))
