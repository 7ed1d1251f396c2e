"""Picking pairs out of a matrix per row is one selection along a flat axis.

    B[:, i, j]  =  flatten(B, 1)[:, F_2 * i + j]      B (N, F_1, F_2), i and j constant (P,), result (N, P)
    B[:, i]     =  index_select(B, 1, i)              i constant (P,)

The interaction of a DLRM is picked so, by the indices of a triangle. When it does not apply: indices that
depend on the input or broadcast against each other; a graph that writes in place.
"""

from __future__ import annotations

from typing import Any

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
        if is_call(node, aten.index.Tensor) and (change := _columns(gm, node)) is not None:
            changes.append(change)
            continue
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


def _columns(gm: fx.GraphModule, node: fx.Node) -> Change | None:
    """One index along one dimension of known size."""
    block: Any = node.args[0]
    given: Any = node.args[1]
    axis = len(given) - 1
    index = constant(gm, given[axis])
    if any(part is not None for part in given[:axis]) or index is None or axis == 0:
        return None
    size = value(block).shape[axis]
    if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32) or not isinstance(size, int):
        return None
    with gm.graph.inserting_before(node):
        positions = add_constant(gm, "columns", index.long() % size)
        made = emit(gm, aten.index_select.default, (block, axis, positions))
    node.replace_all_uses_with(made)
    gm.graph.erase_node(node)
    return Change("select pairs", node.name, f"{len(index)} columns by one index", index.numel() * 8)
