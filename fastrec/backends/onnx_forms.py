"""A graph in the operators that ONNX Runtime runs well, where it runs the same in another form badly.

    x[..., i]        =  (x^T)[i]^T               i constant: rows of the matrix turned over, each copied in one piece
    x (..., d) @ v   =  sum(x * v, -1)           v (d,)
    sum(x, -1)       =  x @ 1                    where `_steady` says no
    sum(x, 1)        =  1 @ x                    x (N, k, d)

Columns one by one are 1.26 ms for 351 of 729 at N=500, as rows 0.2 ms. `MatMul` by a vector goes row by row, ten times the
time of the sum. What its reductions give for a row depends on the others: along the last dimension on where in memory the
row happens to begin, along another on whether there is one row or more. What its products by a matrix give does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

from ..graph import add_constant, copy_graph, emit, is_call, sweep, value

__all__ = ["for_onnx_runtime"]

aten = torch.ops.aten
_Form: TypeAlias = Callable[..., fx.Node]
# Rows of so many floats all begin where the widest loads may.
_ALIGNED = 16


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
    if is_call(node, aten.sum.dim_IntList, aten.mean.dim) and len(args) in (2, 3):
        return _reduction(node)
    return None


def _reduction(node: fx.Node) -> _Form | None:
    """The product that stands for a sum or mean."""
    args: tuple[Any, ...] = node.args
    shape, dims = value(args[0]).shape, args[1]
    if value(args[0]).dtype is not torch.float32 or not isinstance(dims, (list, tuple)) or len(dims) != 1:
        return None
    axis, last = dims[0] % len(shape), len(shape) - 1
    mean = is_call(node, aten.mean.dim)
    if not isinstance(shape[axis], int) or shape[axis] == 0:
        return None
    if axis == last > 0:
        return None if _steady(shape[last]) else (_mean_of_last if mean else _sum_of_last)
    if axis == 1 and last == 2 and isinstance(shape[2], int):
        return _mean_between if mean else _sum_between
    return None


def _steady(width: Any) -> bool:
    """Whether a sum of so many numbers beside each other is the same wherever the row begins."""
    return isinstance(width, int) and width % _ALIGNED == 0


def _gathered(gm: fx.GraphModule, source: fx.Node, _: int, index: fx.Node) -> fx.Node:
    last = value(source).ndim - 1
    turned = emit(gm, aten.permute.default, (source, [last, *range(last)]))
    rows = emit(gm, aten.index_select.default, (turned, 0, index))
    return emit(gm, aten.permute.default, (rows, [*range(1, last + 1), 0]))


def _by_vector(gm: fx.GraphModule, left: fx.Node, right: fx.Node) -> fx.Node:
    product = emit(gm, aten.mul.Tensor, (left, right))
    if value(product).dtype is not torch.float32 or _steady(value(product).shape[-1]):
        return emit(gm, aten.sum.dim_IntList, (product, [-1]))
    return _sum_of_last(gm, product, [-1])


def _sum_of_last(gm: fx.GraphModule, x: fx.Node, _: Any, kept: bool = False, weight: float = 1.0) -> fx.Node:
    ones = torch.full((int(value(x).shape[-1]), 1), weight)
    total = emit(gm, aten.matmul.default, (x, add_constant(gm, "ones", ones)))
    return total if kept else emit(gm, aten.squeeze.dim, (total, -1))


def _mean_of_last(gm: fx.GraphModule, x: fx.Node, dims: Any, kept: bool = False) -> fx.Node:
    return _sum_of_last(gm, x, dims, kept, 1 / int(value(x).shape[-1]))


def _sum_between(gm: fx.GraphModule, x: fx.Node, _: Any, kept: bool = False, weight: float = 1.0) -> fx.Node:
    ones = torch.full((1, int(value(x).shape[1])), weight)
    total = emit(gm, aten.matmul.default, (add_constant(gm, "ones", ones), x))
    return total if kept else emit(gm, aten.squeeze.dim, (total, 1))


def _mean_between(gm: fx.GraphModule, x: fx.Node, dims: Any, kept: bool = False) -> fx.Node:
    return _sum_between(gm, x, dims, kept, 1 / int(value(x).shape[1]))
