"""A graph in the operators that ONNX Runtime runs well, where it runs the same in another form badly.

    x[..., i]        =  (x^T)[i]^T               i constant: rows of the matrix turned over, each copied in one piece
    x (..., d) @ v   =  sum(x * v, -1)           v (d,)

Columns one by one are 1.26 ms for 351 of 729 at N=500, as rows 0.2 ms. `MatMul` by a vector goes row by row, in ten times
the time of the sum; made a matrix the vector would be quicker still, but the sums would depend on the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

from ..graph import copy_graph, emit, is_call, sweep, value

__all__ = ["for_onnx_runtime"]

aten = torch.ops.aten
_Form: TypeAlias = Callable[..., fx.Node]


def for_onnx_runtime(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with these forms; `gm` itself, which is not changed, where it has none of them."""
    if not any(_form(node) for node in gm.graph.nodes):
        return gm
    made = copy_graph(gm)
    for node in list(made.graph.nodes):
        if (form := _form(node)) is not None:
            with made.graph.inserting_before(node):
                node.replace_all_uses_with(form(made, *node.args))
            made.graph.erase_node(node)
    sweep(made)
    return made


def _form(node: fx.Node) -> _Form | None:
    """What writes the node in its other form; None where it is left."""
    args: tuple[Any, ...] = node.args
    if node.kwargs:
        return None
    if is_call(node, aten.index_select.default):
        last = value(args[0]).ndim - 1
        return _gathered if last > 0 and args[1] % (last + 1) == last else None
    if is_call(node, aten.matmul.default, aten.mv.default):
        return _by_vector if value(args[0]).ndim > 1 and value(args[1]).ndim == 1 else None
    return None


def _gathered(gm: fx.GraphModule, source: fx.Node, _: int, index: fx.Node) -> fx.Node:
    last = value(source).ndim - 1
    turned = emit(gm, aten.permute.default, (source, [last, *range(last)]))
    rows = emit(gm, aten.index_select.default, (turned, 0, index))
    return emit(gm, aten.permute.default, (rows, [*range(1, last + 1), 0]))


def _by_vector(gm: fx.GraphModule, left: fx.Node, right: fx.Node) -> fx.Node:
    return emit(gm, aten.sum.dim_IntList, (emit(gm, aten.mul.Tensor, (left, right)), [-1]))
