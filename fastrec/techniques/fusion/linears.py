"""Linear maps side by side on one input are one, and so are a linear map and a number (A11).

    c * (W x + b)        =  (c W) x + c b                      c a number
    W_1 x, ..., W_k x    =  split([W_1; ...; W_k] x)           k >= 2, one matrix product in place of k

New weights are computed in float64. When it does not apply: a scaled map has another reader; weights that are
not constant; maps side by side of more than two dimensions (the heads of an attention: their parts would have
to be copied apart), or whose joint width is over 4096, where a product of its own costs nothing extra.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit, is_call, value
from ..base import Change
from .purity import writes

__all__ = ["linear_weights", "merge_linears"]

aten = torch.ops.aten
_WIDEST = 4096


def merge_linears(gm: fx.GraphModule) -> list[Change]:
    """Merges linear maps; edits `gm` in place. Adds the merged weights."""
    if writes(gm):
        return []
    return [*_scaled(gm), *_side_by_side(gm)]


def _scaled(gm: fx.GraphModule) -> list[Change]:
    changes: list[Change] = []
    for node in list(gm.graph.nodes):
        if not is_call(node, aten.mul.Tensor, aten.div.Tensor) or node.kwargs:
            continue
        inner, number = node.args
        if (
            not is_call(inner, aten.linear.default)
            or len(inner.users) != 1
            or not isinstance(number, (int, float))
        ):
            continue
        held = linear_weights(gm, inner)
        if held is None or value(node).dtype != value(inner).dtype or isinstance(number, bool):
            continue
        factor = number if is_call(node, aten.mul.Tensor) else 1.0 / number
        weight, bias = held
        scaled = None if bias is None else bias.double() * factor
        added = _replace(gm, inner, inner.args[0], weight.double() * factor, scaled, weight.dtype)
        node.replace_all_uses_with(inner)
        gm.graph.erase_node(node)
        changes.append(Change("merge linears", inner.name, f"times {factor:g}", added))
    return changes


def _side_by_side(gm: fx.GraphModule) -> list[Change]:
    changes: list[Change] = []
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in gm.graph.nodes:
        if (
            is_call(node, aten.linear.default)
            and value(node).ndim == 2
            and linear_weights(gm, node) is not None
        ):
            groups.setdefault(node.args[0], []).append(node)
    for source, members in groups.items():
        held = [found for node in members if (found := linear_weights(gm, node)) is not None]
        widths = [weight.shape[0] for weight, _ in held]
        alike = len({weight.dtype for weight, _ in held}) == 1
        if len(members) < 2 or sum(widths) > _WIDEST or not alike:
            continue
        weight = torch.cat([weight for weight, _ in held])
        bias = None
        if any(bias is not None for _, bias in held):
            bias = torch.cat(
                [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in held]
            )
        with gm.graph.inserting_before(members[0]):
            joint = emit(gm, aten.linear.default, (source, *_constants(gm, members[0].name, weight, bias)))
            pieces = emit(gm, aten.split_with_sizes.default, (joint, widths, -1))
            parts = [emit(gm, operator.getitem, (pieces, index)) for index in range(len(members))]
        for node, part in zip(members, parts, strict=True):
            node.replace_all_uses_with(part)
            gm.graph.erase_node(node)
        names = ", ".join(node.name for node in members)
        changes.append(
            Change("merge linears", names, f"{len(members)} on one input are one", _bytes(weight, bias))
        )
    if changes:
        for node in gm.graph.nodes:
            if is_call(node, aten.view.default):
                node.target = aten.reshape.default
    return changes


def linear_weights(gm: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor | None] | None:
    """The weight and bias of a linear map; None where they are not constant."""
    bias_node: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    weight, bias = constant(gm, node.args[1]), constant(gm, bias_node)
    if weight is None or weight.ndim != 2 or (bias_node is not None and bias is None):
        return None
    return weight, bias


def _constants(gm: fx.GraphModule, name: str, weight: Tensor, bias: Tensor | None) -> tuple[fx.Node, ...]:
    made = [add_constant(gm, f"{name}_weight", weight)]
    if bias is not None:
        made.append(add_constant(gm, f"{name}_bias", bias))
    return tuple(made)


def _replace(
    gm: fx.GraphModule, node: fx.Node, source: Any, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> int:
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    node.args = (source, *_constants(gm, node.name, weight, bias))
    node.kwargs = {}
    return _bytes(weight, bias)


def _bytes(weight: Tensor, bias: Tensor | None) -> int:
    return weight.nbytes + (0 if bias is None else bias.nbytes)
