"""Layers put into 8-bit integers, each with what stands around it.

Clamping is what codes do by themselves: a ReLU in front of codes that begin at zero is read past, and one behind them
is dropped. So is any other clamp between whose ends all codes lie:

    code(clamp(x, l, h))  =  code(x)        where code(l) <= 0 and code(h) >= 255

A convolution whose results are read by another layer rounds them by the range of that: its codes are handed on as
they are, and nothing is lost between the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, sweep
from ...ops.convolutions import INT8_CONVOLUTION
from ...ops.linears import CODES, INT8_LINEAR
from .layers import Layer, bias_of, limits, shift_of, sole_clamp
from .pieces import take_apart
from .ranges import Range, code_bias, code_weight, least_scale
from .windows import geometry_of

__all__ = ["in_int8"]


def in_int8(gm: fx.GraphModule, layers: Iterable[Layer]) -> dict[str, int]:
    """Puts these layers into 8 bits, in place, under their names; gives the bytes of the constants each adds.

    Layers of one weight keep one, where its codes are the same.
    """
    names = {node.name: node for node in gm.graph.nodes}
    chosen = {names[layer.site]: layer for layer in layers}
    # Read off the graph as it is, before any layer reads past a clamp.
    clamps = {node: sole_clamp(node) for node in chosen}
    outputs = {node: _output(clamps[node] or node, layer, chosen) for node, layer in chosen.items()}
    made: dict[Any, list[_Held]] = {}
    added = {}
    for node, layer in chosen.items():
        x, output = node.args[0], outputs[node]
        if _within(limits(x), layer.range):
            x = x.args[0]
        others = made.setdefault(node.args[1], [])
        if output is None:
            added[layer.site] = _linear(gm, node, x, layer, others)
            continue
        added[layer.site] = _convolution(gm, node, x, layer, output, others)
        clamp = clamps[node]
        if clamp is not None and _within(limits(clamp), output):
            clamp.replace_all_uses_with(node)
    take_apart(gm)
    sweep(gm)
    return added


def _linear(gm: fx.GraphModule, node: fx.Node, x: Any, layer: Layer, others: list[_Held]) -> int:
    weight = constant(gm, node.args[1])
    assert weight is not None
    held, added = _hold(gm, layer.site, *code_weight(weight), others)
    given = (layer.range.scale, layer.range.zero)
    node.target, node.args, node.kwargs = INT8_LINEAR, (x, held.codes, held.scale, *given, bias_of(node)), {}
    return added


def _convolution(
    gm: fx.GraphModule, node: fx.Node, x: Any, layer: Layer, output: Range, others: list[_Held]
) -> int:
    weight, given = constant(gm, node.args[1]), layer.range
    assert weight is not None
    moves, bias = geometry_of(node, weight.shape[2:]), shift_of(gm, node)
    codes, scale = code_weight(weight.flatten(1), least_scale(bias, given.scale))
    held, added = _hold(gm, layer.site, codes.reshape(weight.shape), scale, others)
    shift = code_bias(bias, scale, given.scale)
    node.target, node.kwargs = INT8_CONVOLUTION, {}
    node.args = (
        *(x, held.codes, held.scale, add_constant(gm, f"{layer.site}_shift", shift)),
        *(given.scale, given.zero, output.scale, output.zero),
        *(list(moves.stride), list(moves.padding), list(moves.dilation), moves.groups),
    )
    return added + shift.nbytes


@dataclass(frozen=True)
class _Held:
    """Codes of a weight in the graph, with the scales that they are by."""

    codes: fx.Node
    scale: fx.Node
    by: Tensor


def _hold(
    gm: fx.GraphModule, site: str, codes: Tensor, scale: Tensor, others: list[_Held]
) -> tuple[_Held, int]:
    """These codes as constants, and the bytes that adds: none where the same weight is held by the same scales."""
    for other in others:
        if torch.equal(other.by, scale):
            return other, 0
    places = (add_constant(gm, f"{site}_codes", codes.contiguous()), add_constant(gm, f"{site}_scale", scale))
    others.append(_Held(*places, scale))
    return others[-1], codes.nbytes + scale.nbytes


def _output(node: fx.Node, layer: Layer, chosen: Mapping[fx.Node, Layer]) -> Range | None:
    """The range of a convolution's results, which `node` has: that of the first layer that reads them, or its own."""
    if layer.output is None:
        return None
    return next(
        (chosen[user].range for user in node.users if user in chosen and user.args[0] is node), layer.output
    )


def _within(ends: tuple[float, float] | None, codes: Range) -> bool:
    """Whether all codes lie between these ends."""
    if ends is None:
        return False
    low, high = (torch.tensor(end / codes.scale).round().item() + codes.zero for end in ends)
    return low <= CODES[0] and high >= CODES[1]
