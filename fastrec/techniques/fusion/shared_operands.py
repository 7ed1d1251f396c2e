"""A batch of products with one and the same matrix is one product.

    bmm(x, expand(y))        =  x y_0                             x (N, a, b), y (1, b, c)
    bmm(expand(y), x)        =  (x^T y_0^T)^T                     y (1, a, b), x (N, b, c)
    matmul over heads        =  the same for each head            x (N, H, a, b), y (1, H, b, c): rows join a
    attention(q, expand(k), expand(v))  =  attention(q', k, v)    q (N, H, L, d): rows are queries, q' (1, H, N L, d)

    sum_t a[n, t, 1] y[t, e]     =  a y_0                         a (N, T, 1), y (1, T, e): a weighted sum of keys
    sum_e x[n, 1, e] y[t, e]     =  x y_0^T                       x (N, 1, e), y (1, T, e): a score for each key

This is attention of a candidate to a history that is the request's: its keys and values are not repeated, and N small
products are a large one. When it does not apply: to a mask that differs by row together with several queries in each;
to causal attention; to operands that differ by row; to a graph that writes in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...graph import emit, is_call, value
from ..base import Change
from .heads import attention_settings
from .once import spread_of
from .purity import writes
from .replacing import replace_each

__all__ = ["share_operands"]

aten = torch.ops.aten


def share_operands(gm: fx.GraphModule) -> list[Change]:
    """Multiplies with what the request gives once; edits `gm` in place. No constants are added."""
    if writes(gm):
        return []
    return replace_each(gm, _MAKERS, "share operands", "one product for all candidates")


def _shared(node: Any, ndim: int) -> fx.Node | None:
    """What is repeated along the first dimension to give the node."""
    spread = spread_of(node)
    if spread is None or spread[1] != 0 or value(node).ndim != ndim:
        return None
    return spread[0]


def _product(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    left, right = node.args[:2]
    ndim = value(node).ndim
    if (
        not isinstance(left, fx.Node)
        or not isinstance(right, fx.Node)
        or value(left).ndim != value(right).ndim
    ):
        return None
    if ndim == 3:
        if (shared := _shared(right, 3)) is not None:
            return emit(gm, aten.matmul.default, (left, emit(gm, aten.select.int, (shared, 0, 0))))
        if (shared := _shared(left, 3)) is not None:
            matrix = emit(gm, aten.transpose.int, (emit(gm, aten.select.int, (shared, 0, 0)), 0, 1))
            turned = emit(gm, aten.transpose.int, (right, 1, 2))
            return emit(gm, aten.transpose.int, (emit(gm, aten.matmul.default, (turned, matrix)), 1, 2))
    if ndim == 4 and (shared := _shared(right, 4)) is not None:
        queries = _rows_as_queries(gm, left)
        return _queries_as_rows(gm, emit(gm, aten.matmul.default, (queries, shared)), left)
    return None


def _rows_as_queries(gm: fx.GraphModule, x: fx.Node) -> fx.Node:
    """(N, H, L, d) as (1, H, N L, d)."""
    _, heads, _, width = value(x).shape
    turned = emit(gm, aten.transpose.int, (x, 0, 1))
    return emit(gm, aten.reshape.default, (turned, [1, heads, -1, width]))


def _queries_as_rows(gm: fx.GraphModule, x: fx.Node, like: fx.Node) -> fx.Node:
    """(1, H, N L, e) as (N, H, L, e)."""
    _, heads, length, _ = value(like).shape
    opened = emit(gm, aten.reshape.default, (x, [heads, -1, length, value(x).shape[3]]))
    return emit(gm, aten.transpose.int, (opened, 0, 1))


def _attention(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    args: tuple[Any, ...] = (*node.args[:3], *attention_settings(node))
    query, keys, values, mask, dropout, causal = args[:6]
    shared = _shared(keys, 4), _shared(values, 4)
    if shared[0] is None or shared[1] is None or causal or node.kwargs.get("is_causal", False):
        return None
    if any(not isinstance(n, int) for n in value(query).shape[1:]) or value(query).ndim != 4:
        return None
    mask = node.kwargs.get("attn_mask", mask)
    if mask is not None:
        spread = spread_of(mask)
        mask = spread[0] if spread is not None and spread[1] == 0 else mask
        given = value(mask).shape
        length = value(query).shape[2]
        if (
            len(given) != 4
            or not isinstance(given[0], int)
            or given[0] != 1
            or (length != 1 and given[2] != 1)
        ):
            return None
    kwargs = {name: given for name, given in node.kwargs.items() if name == "scale"}
    asked = (_rows_as_queries(gm, query), *shared, mask, dropout)
    return _queries_as_rows(gm, emit(gm, aten.scaled_dot_product_attention.default, asked, kwargs), query)


def _weighted(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    args: tuple[Any, ...] = node.args
    product, dims, *rest = args
    if not is_call(product, aten.mul.Tensor) or value(product).ndim != 3 or len(product.users) != 1:
        return None
    if not isinstance(dims, (list, tuple)) or len(dims) != 1 or node.kwargs or len(rest) > 1:
        return None
    axis, kept = int(dims[0]) % 3, bool(rest and rest[0])
    for varying, fixed in (product.args, reversed(product.args)):
        if not isinstance(varying, fx.Node) or not isinstance(fixed, fx.Node):
            return None
        mine, theirs = value(varying).shape, value(fixed).shape
        if (
            len(mine) != 3
            or len(theirs) != 3
            or any(not isinstance(n, int) for n in theirs)
            or theirs[0] != 1
        ):
            continue
        if not isinstance(mine[0], torch.SymInt) or mine[axis] != theirs[axis] or mine[3 - axis] != 1:
            continue
        matrix = emit(gm, aten.select.int, (fixed, 0, 0))
        if axis == 2:
            matrix = emit(gm, aten.transpose.int, (matrix, 0, 1))
        rows = emit(gm, aten.select.int, (varying, 3 - axis, 0))
        made = emit(gm, aten.matmul.default, (rows, matrix))
        return emit(gm, aten.unsqueeze.default, (made, axis)) if kept else made
    return None


_MAKERS = {
    aten.bmm.default: _product,
    aten.matmul.default: _product,
    aten.scaled_dot_product_attention.default: _attention,
    aten.sum.dim_IntList: _weighted,
}
