"""Sums inside a row as products with ones, whose rounding no other row and no number of rows can change.

    sum_k x[..., k]      =   x 1        x (..., K), 1 (K, 1)
    sum_f x[..., f, w]   =   1 x        x (..., F, W), 1 (1, F)

and means, which divide it, and lengths, the root of it for squares. ONNX Runtime's own sums add up in an order that
depends on the address a row happens to lie at and, at a single row, on there being no other: the last bit of a score
then depends on its neighbours. Its products of matrices take each row alike, at any place among any number.

Sums of the middle take as long as before, those of whole rows up to three times, so this is done where codes are, which
promise that rows do not depend on each other. It does not apply to rows of a multiple of 16 numbers, which all begin
where the widest loads may and are added up alike; to sums over the rows of a batch or any free size, over dimensions
that are apart, and to what is not float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..graph import add_constant, copy_graph, emit, is_call, sweep, value
from .common import is_reference

__all__ = ["has_codes", "sums_by_row"]

aten = torch.ops.aten
_ALIGNED = 16


def has_codes(gm: fx.GraphModule) -> bool:
    """Whether the graph computes with, or looks up, numbers in fewer bits by one of our operators."""
    return any(map(is_reference, gm.graph.nodes))


def sums_by_row(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with such sums as products, sharing every tensor with `gm`, which is not changed."""
    made = copy_graph(gm)
    ones: dict[tuple[int, ...], fx.Node] = {}
    for node in list(made.graph.nodes):
        found = _read(node)
        if found is None:
            continue
        x, dims, keep = found
        size = value(x).shape[dims[0] : dims[-1] + 1].numel()
        last = dims[-1] == value(x).ndim - 1
        # Not a vector, by which products go row by row.
        shape = (size, 1) if last else (1, size)
        if shape not in ones:
            ones[shape] = add_constant(made, "ones", torch.ones(shape))
        with made.graph.inserting_before(node):
            if is_call(node, aten.linalg_vector_norm.default):
                x = emit(made, aten.mul.Tensor, (x, x))
            if len(dims) > 1:
                x = emit(made, aten.flatten.using_ints, (x, dims[0], dims[-1]))
            new = emit(made, aten.matmul.default, (x, ones[shape]) if last else (ones[shape], x))
            if not keep:
                new = emit(made, aten.squeeze.dim, (new, -1 if last else -2))
            if is_call(node, aten.mean.dim):
                new = emit(made, aten.div.Tensor, (new, float(size)))
            if is_call(node, aten.linalg_vector_norm.default):
                new = emit(made, aten.sqrt.default, (new,))
        node.replace_all_uses_with(new)
        made.graph.erase_node(node)
    sweep(made)
    return made


def _read(node: fx.Node) -> tuple[fx.Node, list[int], bool] | None:
    """What a sum inside a row adds up: of which value, over which neighbouring dimensions, and whether they are kept."""
    if not is_call(node, aten.sum.dim_IntList, aten.mean.dim, aten.linalg_vector_norm.default):
        return None
    args: list[Any] = list(node.args)
    if is_call(node, aten.linalg_vector_norm.default) and (len(args) < 2 or args.pop(1) != 2):
        return None
    x, given, keep, *_ = [*args, None, False][: max(len(args), 3)] if len(args) < 3 else args
    if node.kwargs or not isinstance(x, fx.Node) or not isinstance(given, (list, tuple)) or not given:
        return None
    held: Tensor = value(x)
    dims = sorted(dim % held.ndim for dim in given if isinstance(dim, int))
    block = dims == list(range(dims[0], dims[-1] + 1)) and len(dims) == len(given)
    last = dims[-1] == held.ndim - 1
    fixed = not any(isinstance(held.shape[dim], torch.SymInt) for dim in dims)
    if last and fixed and held.shape[dims[0] :].numel() % _ALIGNED == 0:
        return None
    placed = last or (len(dims) == 1 and dims[0] == held.ndim - 2)
    floats = held.dtype is torch.float32 and value(node).dtype is torch.float32
    if not (block and placed and fixed and floats and (len(dims) == 1 or not keep)) or held.ndim == len(dims):
        return None
    return x, dims, bool(keep)
