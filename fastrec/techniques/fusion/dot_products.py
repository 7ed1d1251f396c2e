"""Products with one and the same vector, summed, are one matrix-vector product.

    sum(expand(a) * B, -1)  =  B a                           a (1, ..., d), B (*S, d), result (*S)
    B @ expand(a)           =  (B a)[..., None]              a (1, ..., d, 1), B (*S, d)
    expand(a) @ C           =  (C[..., 0] a)[..., None, None]     a (1, ..., 1, d), C (*S, d, 1)

The scores of candidates against one user's vector: one pass over B, and the products (*S, d) are never written.
Broadcasting is an expansion as well. When it does not apply: to a vector that differs between rows; to integers or
two types of numbers; where the products have another reader; to a graph that writes in place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import emit, is_call, value
from ..base import Change
from .purity import writes
from .replacing import replace_each

__all__ = ["multiply_by_vector"]

aten = torch.ops.aten


def multiply_by_vector(gm: fx.GraphModule) -> list[Change]:
    """Replaces sums of products with one vector; edits `gm` in place. No constants are added."""
    if writes(gm):
        return []
    return replace_each(gm, _MAKERS, "multiply by vector", "one vector for all rows")


def _of_sum(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    product, dims, *rest = node.args
    if not is_call(product, aten.mul.Tensor) or not isinstance(product, fx.Node) or node.kwargs:
        return None
    ndim = value(product).ndim
    if len(product.users) != 1 or not isinstance(dims, (list, tuple)):
        return None
    if [dim % ndim for dim in dims if isinstance(dim, int)] != [ndim - 1]:
        return None
    left: Any
    right: Any
    left, right = product.args
    for vector, block in ((left, right), (right, left)):
        one = _one(vector, -1)
        if one is not None and _alike(one, block) and _same(value(block).shape, value(product).shape):
            with gm.graph.inserting_before(node):
                made = _multiply(gm, block, one)
                return emit(gm, aten.unsqueeze.default, (made, -1)) if rest and rest[0] else made
    return None


def _of_product(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    left: Any
    right: Any
    left, right = node.args
    shape = value(node).shape
    column, row = _one(right, -2), _one(left, -1)
    if column is not None and _alike(column, left) and _same(shape, (*value(left).shape[:-1], 1)):
        with gm.graph.inserting_before(node):
            made = _multiply(gm, left, column)
            return emit(gm, aten.unsqueeze.default, (made, -1))
    if row is not None and _alike(row, right) and _same(shape, (*value(right).shape[:-2], 1, 1)):
        with gm.graph.inserting_before(node):
            made = _multiply(gm, emit(gm, aten.squeeze.dim, (right, -1)), row)
            for _ in range(2):
                made = emit(gm, aten.unsqueeze.default, (made, -1))
            return made
    return None


def _one(node: Any, axis: int) -> fx.Node | None:
    """What a node repeats in all its rows: a tensor whose only dimension above 1 is `axis`; None if there is none."""
    if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
        return None
    width = value(node).shape[axis] if value(node).ndim >= -axis else 1
    while is_call(node, aten.expand.default, aten.expand_as.default, aten.repeat.default):
        node = node.args[0]
    shape = value(node).shape
    if not all(isinstance(n, int) for n in shape) or len(shape) < -axis:
        return None
    return node if shape[axis] == width > 1 and math.prod(shape) == width else None


def _alike(one: fx.Node, block: Any) -> bool:
    """Whether the block holds several vectors, of the same type of numbers."""
    if not isinstance(block, fx.Node) or _one(block, -1) is not None or _one(block, -2) is not None:
        return False
    return (
        value(one).dtype == value(block).dtype and value(block).is_floating_point() and value(block).ndim > 1
    )


def _same(left: Any, right: Any) -> bool:
    return [str(n) for n in left] == [str(n) for n in right]


def _multiply(gm: fx.GraphModule, block: fx.Node, vector: fx.Node) -> fx.Node:
    flat = emit(gm, aten.reshape.default, (vector, [-1]))
    return emit(gm, aten.matmul.default, (block, flat))


_MAKERS = {
    aten.sum.dim_IntList: _of_sum,
    aten.matmul.default: _of_product,
    aten.bmm.default: _of_product,
}
