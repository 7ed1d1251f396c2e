"""A sum along a join, and a selection from it, need its parts alone (A4).

    x = cat([expand(u), c], k)
    sum(x, k)                  =  sum(c, k) + sum(u, k)              the request's sum once, broadcast
    mean(x, k)                 =  (sum(c, k) + sum(u, k)) / (size of x along k)
    x[..., positions, ...]     =  expand(u[..., positions, ...]), or c[..., positions - d_u, ...]

So the sums of a factorisation machine, ½ ((Σ v)² - Σ v²), run over the candidates' fields only, and of a matrix whose
columns are partly the request's, each reader gets the columns it reads. When it does not apply: selections that
take of both parts; sums along the rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from ...graph import emit, is_call, operator_name, value
from ..base import Change
from .joins import Joins
from .once import dimension
from .purity import writes

__all__ = ["split_joins"]

aten = torch.ops.aten


def split_joins(gm: fx.GraphModule) -> list[Change]:
    """Reads the parts of joins in sums and selections; edits `gm` in place. Adds a few integers at most."""
    if writes(gm):
        return []
    joins = Joins(gm)
    changes: list[Change] = []
    for node in list(gm.graph.nodes):
        if is_call(node, aten.sum.dim_IntList, aten.mean.dim):
            change = _sum(gm, joins, node)
        else:
            change = _select(gm, joins, node)
        if change is not None:
            changes.append(change)
    return changes


def _sum(gm: fx.GraphModule, joins: Joins, node: fx.Node) -> Change | None:
    args: tuple[Any, ...] = node.args
    source, dims, *rest = args
    if not isinstance(dims, (list, tuple)) or not dims or not isinstance(source, fx.Node):
        return None
    away = sorted(int(k) % value(source).ndim for k in dims)
    join = joins.read(source)
    if join is None or join.axis not in away or join.rows in away or not join.plain:
        return None
    kept = bool(rest[0]) if rest else bool(node.kwargs.get("keepdim", False))
    if node.kwargs.get("dtype") is not None or (rest and len(rest) > 1 and rest[1] is not None):
        return None
    sizes = [value(source).shape[k] for k in away]
    if is_call(node, aten.mean.dim) and any(not isinstance(n, int) for n in sizes):
        return None
    with gm.graph.inserting_before(node):
        sums = [emit(gm, aten.sum.dim_IntList, (part, away, kept)) for part in (join.each, join.once)]
        total = emit(gm, aten.add.Tensor, tuple(sums))
        if is_call(node, aten.mean.dim):
            total = emit(gm, aten.div.Tensor, (total, math.prod(int(n) for n in sizes)))
    return _replace(gm, node, total, f"{join.width} of {len(join.order)} terms once for the request")


def _select(gm: fx.GraphModule, joins: Joins, node: fx.Node) -> Change | None:
    found = joins.pure(node)
    if found is None:
        return None
    part, made, rows = found
    if part == "once":
        with gm.graph.inserting_before(node):
            made = emit(gm, aten.expand.default, (made, _sizes(gm, node, made, rows)))
    return _replace(gm, node, made, f"read from the {'request' if part == 'once' else 'candidates'} alone")


def _sizes(gm: fx.GraphModule, node: fx.Node, made: fx.Node, rows: int) -> list[Any]:
    sizes: list[Any] = list(value(made).shape)
    sizes[rows] = emit(gm, aten.sym_size.int, (node.args[0], _rows_of(node, rows)))
    return sizes


def _rows_of(node: fx.Node, rows: int) -> int:
    """The rows' dimension of what the node selects from: as in its result, one further behind a dropped dimension."""
    source: Any = node.args[0]
    if operator_name(node) == "select":
        return rows + (dimension(node, 1) % value(source).ndim <= rows)
    return rows


def _replace(gm: fx.GraphModule, node: fx.Node, made: fx.Node, detail: str) -> Change:
    node.replace_all_uses_with(made)
    gm.graph.erase_node(node)
    return Change("split joins", node.name, detail)
