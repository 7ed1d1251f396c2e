"""A head over a product of a join with a linear map is a dot product with what the join alone gives (A6).

    w (a * (W x + b))  =  (W^T (w * a)) . x  +  (w * b) . a        a (N, D), x (N, d), W (D, d), w one output's weights
    w (a * (W x + b)) + v . x  =  (W^T (w * a) + v) . x + (w * b) . a

The D d multiply-adds of `W x` become those of a linear map of `a`, diag(w) in its weights; of a join of D_u
features of the request and D_i of the candidate it is split later, and D_i d are left for each. It is so with the
last layer of a cross network, whose `a` is the input of all its layers: the map meets theirs, and they become one.

The head may read the product inside sums and joins, beside anything else. New weights are computed in float64. When
it does not apply: to heads of more than four outputs; to what others read as well; where it does not take fewer
multiply-adds for each candidate; to tensors of more than two dimensions; to a graph that writes in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...graph import add_constant, emit, is_call, value
from ..base import Change
from .joins import Joins
from .purity import writes
from .terms import joined, opened, weights

__all__ = ["contract_heads"]

aten = torch.ops.aten
_OUTPUTS = 4
_WORTH = 0.8


def contract_heads(gm: fx.GraphModule) -> list[Change]:
    """Contracts heads with the products they read; edits `gm` in place. Adds the weights of the maps it makes."""
    if writes(gm):
        return []
    joins = Joins(gm, products=False)
    changes = []
    for node in list(gm.graph.nodes):
        if is_call(node, aten.linear.default) and (change := _contract(gm, joins, node)) is not None:
            changes.append(change)
    return changes


@dataclass
class _Product:
    """`scale * (weight x + bias)`, met by `columns` (h, D)."""

    scale: fx.Node
    x: fx.Node
    weight: Tensor
    bias: Tensor | None
    columns: Tensor


def _contract(gm: fx.GraphModule, joins: Joins, node: fx.Node) -> Change | None:
    held = weights(gm, node)
    if held is None or len(held[0]) > _OUTPUTS or value(node).ndim != 2:
        return None
    if not isinstance(value(node).shape[0], torch.SymInt):
        return None
    columns, bias = held
    source = node.args[0]
    assert isinstance(source, fx.Node)
    terms = opened(source, columns.double())
    for place, (leaf, mine) in enumerate(terms):
        product = _product(gm, leaf, mine)
        if product is None:
            continue
        left = _left(joins, product.scale)
        height, width = product.weight.shape
        before = height * (_left(joins, product.x) or width)
        if left is None or len(columns) * width * (left + 1) > _WORTH * before:
            continue
        others = terms[:place] + terms[place + 1 :]
        added = _replace(gm, node, product, others, bias, held[0].dtype)
        detail = f"{height} x {width} multiply-adds become {len(columns) * width} x {left + 1}"
        return Change("contract heads", node.name, detail, added)
    return None


def _product(gm: fx.GraphModule, leaf: fx.Node, columns: Tensor) -> _Product | None:
    if not is_call(leaf, aten.mul.Tensor) or len(leaf.users) != 1:
        return None
    for scale, inner in (leaf.args, reversed(leaf.args)):
        if not isinstance(scale, fx.Node) or not is_call(inner, aten.linear.default):
            continue
        assert isinstance(inner, fx.Node)
        x, held = inner.args[0], weights(gm, inner)
        if held is None or len(inner.users) != 1 or not isinstance(x, fx.Node) or value(x).ndim != 2:
            continue
        shape, given = ([str(n) for n in value(side).shape] for side in (leaf, scale))
        # The scale of all candidates may be the request's.
        alike = given in (shape, ["1", shape[1]]) and [str(n) for n in value(inner).shape] == shape
        if alike and value(scale).dtype == value(x).dtype:
            return _Product(scale, x, *held, columns)
    return None


def _left(joins: Joins, x: fx.Node) -> int | None:
    """How much of a linear map's argument is left for each candidate; None where all of it is."""
    if isinstance(value(x).shape[0], int):
        return 0
    join = joins.read(x)
    if join is None or join.axis != 1:
        return None
    return int(value(join.each).shape[1])


def _replace(
    gm: fx.GraphModule,
    node: fx.Node,
    product: _Product,
    others: list[tuple[fx.Node, Tensor]],
    bias: Tensor | None,
    dtype: torch.dtype,
) -> int:
    """The head as a dot product beside a head over what else it read; the bytes of what was added."""
    beside: dict[fx.Node, Tensor] = {}
    for leaf, columns in others:
        beside[leaf] = beside[leaf] + columns if leaf in beside else columns
    outputs, width = len(product.columns), product.weight.shape[1]
    across = (product.columns[:, :, None] * product.weight.double()).transpose(1, 2)  # (h, d, D)
    met = beside.pop(product.x, None)
    mine = beside.pop(product.scale, None)
    if product.bias is not None:
        of_bias = product.columns * product.bias.double()
        mine = of_bias if mine is None else mine + of_bias
    with gm.graph.inserting_before(node):
        factor, added = _linear(gm, node, [product.scale], across.reshape(outputs * width, -1), met, dtype)
        total = _dot(gm, factor, product.x, outputs)
        parts = [([product.scale], mine)] if mine is not None else []
        if beside:
            parts.append((list(beside), torch.cat(list(beside.values()), 1)))
        for leaves, columns in parts:
            made, bytes_ = _linear(gm, node, leaves, columns, bias, dtype)
            total, added, bias = emit(gm, aten.add.Tensor, (total, made)), added + bytes_, None
        if bias is not None:
            total = emit(gm, aten.add.Tensor, (total, add_constant(gm, f"{node.name}_bias", bias)))
    node.replace_all_uses_with(total)
    gm.graph.erase_node(node)
    return added


def _dot(gm: fx.GraphModule, factor: fx.Node, x: fx.Node, outputs: int) -> fx.Node:
    """The dot products of x (N, d) with the outputs' factors (N, h d) or, the same for all rows, (1, h d)."""
    width = value(x).shape[1]
    if isinstance(value(factor).shape[0], int):
        matrix = emit(gm, aten.reshape.default, (factor, [outputs, width]))
        return emit(gm, aten.matmul.default, (x, emit(gm, aten.transpose.int, (matrix, 0, 1))))
    if outputs > 1:
        factor = emit(gm, aten.reshape.default, (factor, [-1, outputs, width]))
        x = emit(gm, aten.unsqueeze.default, (x, 1))
    multiplied = emit(gm, aten.mul.Tensor, (factor, x))
    return emit(gm, aten.sum.dim_IntList, (multiplied, [-1], outputs == 1))


def _linear(
    gm: fx.GraphModule,
    node: fx.Node,
    leaves: list[fx.Node],
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> tuple[fx.Node, int]:
    """A linear map of these, side by side, and the bytes of its constants."""
    held = [weight.to(dtype)] + ([] if bias is None else [bias.reshape(-1).to(dtype)])
    names = (f"{node.name}_weight", f"{node.name}_bias")
    constants = [add_constant(gm, name, t) for name, t in zip(names, held, strict=False)]
    return emit(gm, aten.linear.default, (joined(gm, leaves), *constants)), sum(t.nbytes for t in held)
