"""Small numbers that the exporter of ONNX would take for nothing.

Its rules that drop `x + 0` and `x * 1` take a single number up to 1e-8 for 0, and one within 1e-5 of 1 for 1: gone is the eps that keeps
a mean over nothing from being 0 / 0. A number that is held as a list of one is left as it is, and counts the same.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from ..graph import add_constant, constant, copy_graph, is_call, value

__all__ = ["with_kept_numbers"]

_ATEN = torch.ops.aten
_SUMS = (_ATEN.add.Tensor, _ATEN.sub.Tensor)
_PRODUCTS = (_ATEN.mul.Tensor, _ATEN.div.Tensor)
# Wider than the exporter's, which may change: what is kept needlessly costs nothing.
_NEAR_ZERO, _NEAR_ONE = 1e-6, 1e-3


def with_kept_numbers(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with such numbers as tensors (1,); itself where there are none."""
    if not any(_next_to_nothing(gm, node) for node in gm.graph.nodes):
        return gm
    made = copy_graph(gm)
    for node in list(made.graph.nodes):
        numbers = _next_to_nothing(made, node)
        for place, number in numbers.items():
            held = torch.tensor([number], dtype=value(node).dtype)
            node.update_arg(place, add_constant(made, "kept_number", held))
        if numbers and value(node).ndim == 0:
            with made.graph.inserting_after(node):
                single = made.graph.call_function(_ATEN.reshape.default, (node, []))
            node.replace_all_uses_with(single, lambda user, single=single: user is not single)
    return made


def _next_to_nothing(gm: fx.GraphModule, node: fx.Node) -> dict[int, float]:
    """The single numbers near nothing that a node adds or multiplies by, each with its place among the arguments."""
    if not is_call(node, *_SUMS, *_PRODUCTS) or not value(node).is_floating_point():
        return {}
    neutral, near = (0.0, _NEAR_ZERO) if is_call(node, *_SUMS) else (1.0, _NEAR_ONE)
    found = {place: _number(gm, node.args[place]) for place in (0, 1)}
    return {
        place: number
        for place, number in found.items()
        if number is not None and number != neutral and math.isclose(number, neutral, rel_tol=0, abs_tol=near)
    }


def _number(gm: fx.GraphModule, arg: object) -> float | None:
    """What an argument is, where it is a single number."""
    held = constant(gm, arg)
    if held is not None and held.ndim == 0 and held.is_floating_point():
        return float(held)
    return arg if isinstance(arg, float) else None
