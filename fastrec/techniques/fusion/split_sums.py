"""A sum along a join is the sum of its candidates' part and, made once, of its request's (A4).

    x = cat([expand(u), c], k)
    sum(x, k)   =  sum(c, k) + sum(u, k)
    mean(x, k)  =  (sum(c, k) + sum(u, k)) / (size of x along k)

So the sums of a factorisation machine, ½ ((Σ v)² - Σ v²), run over the candidates' fields only. When it does not
apply: to sums along the rows; to joins that hold some of their positions twice; to a graph that writes in place.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from ...graph import emit, is_call, value
from ..base import Change
from .joins import Joins
from .purity import writes

__all__ = ["split_sums"]

aten = torch.ops.aten


def split_sums(gm: fx.GraphModule) -> list[Change]:
    """Sums the parts of joins; edits `gm` in place. No constants are added."""
    if writes(gm):
        return []
    joins = Joins(gm)
    calls = [node for node in gm.graph.nodes if is_call(node, aten.sum.dim_IntList, aten.mean.dim)]
    return [change for node in calls if (change := _sum(gm, joins, node)) is not None]


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
    node.replace_all_uses_with(total)
    gm.graph.erase_node(node)
    return Change("split sums", node.name, f"{join.width} of {len(join.order)} terms once for the request")
