"""What is selected from one part of a join is read from that part.

    x = cat([expand(u), c], k)
    x[..., positions, ...]  =  expand(u[..., positions, ...])         all of them of the request's part
                            =  c[..., positions - d_u, ...]           all of them of the candidates'

Of a matrix whose columns are partly the request's, each reader so gets the columns it reads. When it does not apply:
to selections that take of both parts; to a graph that writes in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...graph import emit, value
from ..base import Change
from .joins import Joins
from .purity import writes

__all__ = ["select_parts"]

aten = torch.ops.aten


def select_parts(gm: fx.GraphModule) -> list[Change]:
    """Reads selections from the part they lie in; edits `gm` in place. Adds a few integers at most."""
    if writes(gm):
        return []
    joins = Joins(gm, products=False)
    return [change for node in list(gm.graph.nodes) if (change := _select(gm, joins, node)) is not None]


def _select(gm: fx.GraphModule, joins: Joins, node: fx.Node) -> Change | None:
    found = joins.pure(node)
    if found is None:
        return None
    join, made, rows, mine = found
    if mine:
        with gm.graph.inserting_before(node):
            sizes: list[Any] = list(value(made).shape)
            sizes[rows] = emit(gm, aten.sym_size.int, (join.each, join.rows))
            made = emit(gm, aten.expand.default, (made, sizes))
    node.replace_all_uses_with(made)
    gm.graph.erase_node(node)
    return Change("select parts", node.name, f"read from the {'request' if mine else 'candidates'} alone")
