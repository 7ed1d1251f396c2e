"""A product with a constant matrix is a linear map, by whichever operator it was written.

    matmul(x, W) = mm(x, W)  =  linear(x, W^T)             W constant (d, h), x (..., d)
    matmul(x, w)             =  linear(x, w[None])[..., 0]     w constant (d,)
    addmm(b, x, W)           =  linear(x, W^T, b)          b (h,)

So that what is known of linear maps holds for them. The transposed weight is a view. When it does not apply: to
factors `alpha` and `beta`; to x of one dimension; to a graph that writes in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit, is_call, value
from ..base import Change
from .purity import writes
from .replacing import replace_each

__all__ = ["name_linears"]

aten = torch.ops.aten


def name_linears(gm: fx.GraphModule) -> list[Change]:
    """Writes products with constant matrices as linear maps; edits `gm` in place. No constants are copied."""
    if writes(gm):
        return []
    return replace_each(gm, _MAKERS, "name linears", "a product with a constant matrix")


def _linear(gm: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    found = _operands(node)
    weight = None if found is None else constant(gm, found[1])
    if found is None or weight is None or not weight.is_floating_point() or weight.ndim > 2:
        return None
    x, held, bias = found
    if value(x).ndim < 2 or value(x).dtype != weight.dtype or (bias is not None and value(bias).ndim != 1):
        return None
    transposed: Tensor = weight[None] if weight.ndim == 1 else weight.t()
    name = add_constant(gm, f"{held.target}_transposed", transposed)
    made = emit(gm, aten.linear.default, (x, name) if bias is None else (x, name, bias))
    return emit(gm, aten.squeeze.dim, (made, -1)) if weight.ndim == 1 else made


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None] | None:
    """The input, the matrix and the bias of a product."""
    args: tuple[Any, ...] = node.args
    if is_call(node, aten.matmul.default, aten.mm.default) and len(args) == 2:
        x, weight, bias = *args, None
    elif is_call(node, aten.addmm.default) and not node.kwargs and len(args) == 3:
        bias, x, weight = args
    else:
        return None
    return (x, weight, bias) if isinstance(x, fx.Node) and isinstance(weight, fx.Node) else None


_MAKERS = dict.fromkeys((aten.matmul.default, aten.mm.default, aten.addmm.default), _linear)
