"""Operators that act element by element, whose arguments may be broadcast against each other.

    f(expand(x), y)  =  f(x, y)        where the result has the same shape all the same

`drop_expands` removes what an element-wise operator would repeat by itself. When it does not apply: to a graph that
writes in place; where the repeated argument alone gives the result its shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from ...graph import evaluate, is_call, operator_name, value
from ..base import Change
from .once import spread_of
from .purity import is_pure, writes

__all__ = ["drop_expands", "is_pointwise"]

aten = torch.ops.aten
_UNTAGGED = frozenset(
    (
        "dropout",
        "masked_fill",
        "to",
        "_to_copy",
        "type_as",
        "prelu",
        "_prelu_kernel",
        "hardswish",
        "log_sigmoid",
    )
)
_WHERE = (aten.where.Scalar, aten.where.ScalarSelf, aten.where.ScalarOther)


def is_pointwise(node: Any) -> bool:
    """Whether the node computes each element from those in the same place of its arguments."""
    if not isinstance(node, fx.Node) or not isinstance(node.target, OpOverload) or not is_pure(node):
        return False
    if operator_name(node) == "prelu":
        # A slope for each channel is no broadcast.
        return value(node.args[1]).numel() == 1  # type: ignore[arg-type]  # an argument of a node is of any type
    known = operator_name(node) in _UNTAGGED or node.target in _WHERE
    return known or torch.Tag.pointwise in node.target.tags


def drop_expands(gm: fx.GraphModule) -> list[Change]:
    """Lets element-wise operators broadcast; edits `gm` in place. No constants are added."""
    if writes(gm):
        return []
    changes: list[Change] = []
    for node in gm.graph.nodes:
        if not is_pointwise(node) or len(node.all_input_nodes) < 2:
            continue
        if all(spread_of(arg) is not None for arg in node.all_input_nodes):
            continue  # it is itself the same in all rows
        repeats = [is_call(arg, aten.expand.default, aten.expand_as.default) for arg in node.all_input_nodes]
        for source, repeated in zip(list(node.all_input_nodes), repeats, strict=True):
            if not repeated:
                continue
            inner = source.args[0]
            given = node.args, node.kwargs
            node.replace_input_with(source, inner)
            try:
                found = evaluate(gm, node)
                same = [str(n) for n in found.shape] == [str(n) for n in value(node).shape]
            except RuntimeError:
                same = False
            if same:
                changes.append(Change("drop expands", node.name, f"{source.name} is broadcast"))
            else:
                node.args, node.kwargs = given
    return changes
