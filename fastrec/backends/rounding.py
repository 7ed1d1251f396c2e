"""Rounding to bfloat16 that any conversion keeps: OpenVINO's own rounds ties and more than ties its own way.

    c = (2^16 + 1) x,    h = c - (c - x)        x with 8 bits of mantissa, to nearest, halves to even

in float32; h is a number of bfloat16, whose conversion is exact. c is that of x cut at 2^111, so that nothing overflows: beyond,
where h keeps more bits, the conversion rounds as it likes.

Source: Dekker, "A floating-point technique for extending the available precision" (1971), section 5 (Veltkamp).
"""

from __future__ import annotations

import torch
from torch import fx

from ..graph import copy_graph, emit, is_call, sweep, value

__all__ = ["round_first"]

aten = torch.ops.aten

_SPLIT = float(2**16 + 1)
_LARGE = float(2**111)


def round_first(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with what is made bfloat16 rounded before; `gm` itself, which is not changed, where nothing is."""
    if not any(_is_rounding(node) for node in gm.graph.nodes):
        return gm
    made = copy_graph(gm)
    for node in list(made.graph.nodes):
        if _is_rounding(node):
            x = node.args[0]
            with made.graph.inserting_before(node):
                cut = emit(made, aten.clamp.default, (x, -_LARGE, _LARGE))
                large = emit(made, aten.mul.Tensor, (cut, _SPLIT))
                rest = emit(made, aten.sub.Tensor, (large, x))
                high = emit(made, aten.sub.Tensor, (large, rest))
            node.args = (high, *node.args[1:])
    sweep(made)
    return made


def _is_rounding(node: fx.Node) -> bool:
    if not is_call(node, aten.to.dtype, aten._to_copy.default) or not isinstance(node.args[0], fx.Node):
        return False
    return value(node).dtype is torch.bfloat16 and value(node.args[0]).dtype is torch.float32
