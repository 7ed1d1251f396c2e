"""The layers of a graph that 8 bits are for: linear maps and convolutions by constant float32 weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import constant, copy_graph, is_call, sweep, value
from ..fusion.matmuls import name_linears
from .ranges import BIAS, Range
from .windows import CONVOLUTIONS, geometry_of

__all__ = [
    "Layer",
    "bias_of",
    "groups_of",
    "is_convolution",
    "layers_of",
    "limits",
    "linear_maps",
    "named",
    "shift_of",
    "sole_clamp",
    "unfit",
    "uses",
]

aten = torch.ops.aten

# Kernels work group by group, and narrower ones take longer in integers; those of one channel have a kernel of their own.
_LEAST_GROUP = 32
_SUM = 2**31


@dataclass(frozen=True)
class Layer:
    """A layer at a site: how many weights it has, the range its input is rounded in, and whether that was evened.

    `output` is the range of the results of a convolution; those of a linear map are not rounded.
    """

    site: str
    weights: int
    range: Range
    evened: bool = False
    output: Range | None = None


def named(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy in which products with constant matrices are linear maps."""
    copy = copy_graph(gm)
    name_linears(copy)
    sweep(copy)
    return copy


def layers_of(gm: fx.GraphModule) -> list[fx.Node]:
    """The linear maps and convolutions of float32 activations by a constant float32 weight.

    A bias is absent or has one dimension; that of a convolution is constant.
    """
    found = []
    for node in gm.graph.nodes:
        if not is_call(node, aten.linear.default, *CONVOLUTIONS):
            continue
        weight, bias = constant(gm, node.args[1]), bias_of(node)
        if (
            weight is not None
            and (value(node.args[0]).ndim == weight.ndim if is_convolution(node) else weight.ndim == 2)
            and {weight.dtype, value(node.args[0]).dtype, value(node).dtype} == {torch.float32}
            and (bias is None or (value(bias).dtype is torch.float32 and value(bias).ndim == 1))
            and (bias is None or not is_convolution(node) or constant(gm, bias) is not None)
        ):
            found.append(node)
    return found


def linear_maps(gm: fx.GraphModule) -> list[fx.Node]:
    """Those of the layers that are no convolutions."""
    return [node for node in layers_of(gm) if not is_convolution(node)]


def is_convolution(node: fx.Node) -> bool:
    """Whether the node is a convolution of one or two dimensions."""
    return is_call(node, *CONVOLUTIONS)


def bias_of(node: fx.Node) -> Any:
    """The bias of a linear map or a convolution, None where it has none."""
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


def shift_of(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """The bias (O,) of a convolution, zeros where it has none."""
    weight, bias = constant(gm, node.args[1]), constant(gm, bias_of(node))
    assert weight is not None
    return weight.new_zeros(len(weight)) if bias is None else bias


def groups_of(node: fx.Node) -> int:
    """In how many parts a layer works, each with results and weights of its own."""
    return geometry_of(node, value(node.args[1]).shape[2:]).groups if is_convolution(node) else 1  # type: ignore[arg-type]  # an argument of a node is of any type


def uses(node: fx.Node) -> int:
    """How many weights a layer has, those of a convolution counted at every position that they are used at."""
    places = value(node).shape[2:] if is_convolution(node) else ()
    return value(node.args[1]).numel() * math.prod(size for size in places if isinstance(size, int))  # type: ignore[arg-type]  # an argument of a node is of any type


def unfit(gm: fx.GraphModule, node: fx.Node) -> str:
    """Why a layer stays as it is whatever calibration says; nothing where it may change."""
    weight = constant(gm, node.args[1])
    assert weight is not None
    if not bool(weight.isfinite().all()):
        return "its weights are not all finite"
    if not is_convolution(node):
        return ""
    if not bool(shift_of(gm, node).isfinite().all()):
        return "its bias is not finite"
    channels, groups = weight.shape[1], groups_of(node)
    if groups > 1 and 1 < channels < _LEAST_GROUP:
        return f"{groups:,} groups of {channels}: under {_LEAST_GROUP} channels integers take longer"
    if 255 * 127 * weight[0].numel() + BIAS >= _SUM:
        return f"{weight[0].numel():,} products in a sum: their codes may pass 32 bits"
    return ""


def limits(node: Any) -> tuple[float, float] | None:
    """The least and the largest result of a call that does nothing but clamp its first argument."""
    if not isinstance(node, fx.Node) or node.kwargs:
        return None
    low, high = (*node.args[1:], None, None)[:2]
    if is_call(node, aten.relu.default):
        return 0.0, torch.inf
    if is_call(node, aten.relu6.default):
        return 0.0, 6.0
    if is_call(node, aten.hardtanh.default):
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    elif not is_call(node, aten.clamp.default):
        return None
    low, high = -torch.inf if low is None else low, torch.inf if high is None else high
    return (
        (float(low), float(high))
        if isinstance(low, (int, float)) and isinstance(high, (int, float))
        else None
    )


def sole_clamp(node: fx.Node) -> fx.Node | None:
    """The call that clamps the result of `node`, where nothing else reads it."""
    (reader, *others) = (*node.users, None)
    return reader if others == [None] and reader is not None and limits(reader) is not None else None
