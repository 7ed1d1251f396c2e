"""Picking pairs out of a matrix per row is one selection along a flat axis.

    B[:, i, j]  =  flatten(B, 1)[:, F_2 * i + j]      B (N, F_1, F_2), i and j constant (P,), result (N, P)

The interaction of a DLRM is picked so, by the indices of a triangle. When it does not apply: indices that
depend on the input or broadcast against each other; a graph that writes in place.
"""

from __future__ import annotations

import torch
from torch import fx

from ...graph import add_constant, constant, emit, is_call, value
from ..base import Change
from .purity import writes

__all__ = ["select_pairs"]

aten = torch.ops.aten


def select_pairs(gm: fx.GraphModule) -> list[Change]:
    """Replaces selections by two indices with one; edits `gm` in place. Adds the flat index."""
    if writes(gm):
        return []
    changes: list[Change] = []
    for node in list(gm.graph.nodes):
        if not is_call(node, aten.index.Tensor) or len(node.args[1]) != 3 or node.args[1][0] is not None:
            continue
        block, (_, rows, columns) = node.args
        first, second = constant(gm, rows), constant(gm, columns)
        shape = value(block).shape
        if (
            first is None
            or second is None
            or len(shape) != 3
            or not all(isinstance(n, int) for n in shape[1:])
        ):
            continue
        if first.ndim != 1 or first.shape != second.shape or first.dtype != torch.int64:
            continue
        flat = first % shape[1] * shape[2] + second % shape[2]
        index = add_constant(gm, "pairs", flat)
        with gm.graph.inserting_before(node):
            made = emit(gm, aten.flatten.using_ints, (block, 1))
            made = emit(gm, aten.index_select.default, (made, 1, index))
        node.replace_all_uses_with(made)
        gm.graph.erase_node(node)
        changes.append(Change("select pairs", node.name, f"{len(flat)} pairs by one index", flat.nbytes))
    return changes
