"""Sums of several columns of the same rows are columns of one sum.

    sum(x[..., a:b], 1), sum(x[..., c:d], 1)   =   s[..., a:b], s[..., c:d]        s = sum(x, 1),  x (N, k, w)

Stacked tables hold side by side what is summed apart: an embedding, its first-order weight, its squared length. The
whole rows lie in one piece, so they are added up in one pass, and where they are looked up, in torch. Means alike.

When it does not apply: where the columns summed are less than half of those there are, or are summed by one call alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...graph import emit, is_call, value
from ..base import Change
from .moves import reads_strides
from .once import dimension
from .purity import writes

__all__ = ["sum_once"]

aten = torch.ops.aten


@dataclass(frozen=True)
class _Sum:
    """A sum or mean of the columns start:stop of rows, itself without the last dimension where that was dropped."""

    node: fx.Node
    start: int
    stop: int
    kept: bool
    dropped: bool


def sum_once(gm: fx.GraphModule) -> list[Change]:
    """Makes one sum of several over columns of the same rows; edits `gm` in place. No constants are added."""
    if writes(gm) or reads_strides(gm):
        return []
    found: dict[tuple[fx.Node, Any], list[_Sum]] = {}
    for node in gm.graph.nodes:
        read = _read(node)
        if read is not None:
            found.setdefault((read[0], node.target), []).append(read[1])
    changes = []
    for (rows, target), sums in found.items():
        covered = {k for one in sums for k in range(one.start, one.stop)}
        if len(sums) < 2 or 2 * len(covered) < value(rows).shape[2]:
            continue
        with gm.graph.inserting_after(rows):
            total = emit(gm, target, (rows, [1]))
        for one in sums:
            _replace(gm, total, one)
        detail = f"{len(sums)} sums of columns of {rows.name} are columns of one"
        changes.append(Change("sum once", rows.name, detail))
    return changes


def _read(node: fx.Node) -> tuple[fx.Node, _Sum] | None:
    """The rows (N, k, w) of which a node sums columns along the second dimension."""
    if not is_call(node, aten.sum.dim_IntList, aten.mean.dim) or node.kwargs or len(node.args) not in (2, 3):
        return None
    source, dims, *kept = node.args
    if not isinstance(source, fx.Node) or not isinstance(dims, (list, tuple)) or list(dims) != [1]:
        return None
    dropped = (
        is_call(source, aten.squeeze.dim) and value(source).ndim == 2 and dimension(source, 1) in (2, -1)
    )
    cut: Any = source.args[0] if dropped else source
    if not is_call(cut, aten.slice.Tensor) or value(cut).ndim != 3 or dimension(cut, 1) not in (2, -1):
        return None
    rows, width = cut.args[0], value(cut.args[0]).shape[2]
    bounds = (*cut.args[2:], *(None, None, 1)[len(cut.args) - 2 :])
    if cut.kwargs or not isinstance(width, int) or any(isinstance(bound, fx.Node) for bound in bounds):
        return None
    start, stop, step = slice(*bounds).indices(width)
    if step != 1 or stop <= start or (dropped and stop - start != 1):
        return None
    return rows, _Sum(node, start, stop, bool(kept and kept[0]), dropped)


def _replace(gm: fx.GraphModule, total: fx.Node, one: _Sum) -> None:
    with gm.graph.inserting_before(one.node):
        made = emit(gm, aten.slice.Tensor, (total, 1, one.start, one.stop))
        if one.dropped and not one.kept:
            made = emit(gm, aten.squeeze.dim, (made, 1))
        elif one.kept and not one.dropped:
            made = emit(gm, aten.unsqueeze.default, (made, 1))
    one.node.replace_all_uses_with(made)
    gm.graph.erase_node(one.node)
