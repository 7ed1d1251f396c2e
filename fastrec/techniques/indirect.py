"""Rows looked up by way of a map: many ids may mean one row.

    x_v  =  U[p_v]          U (K, d), p (V,) int32 in 0..K-1

The map is read like a table, by the ids alone, so both lookups run in front of any session and no row depends on the others
of its batch. It costs 4 bytes an id, and a second lookup, of single elements.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ..graph import add_constant, constant, emit, is_call, value
from .reads import Table, read_otherwise

__all__ = ["is_place", "look_up", "read_by_map"]

aten = torch.ops.aten


def look_up(gm: fx.GraphModule, places: fx.Node, rows: fx.Node, ids: fx.Node) -> fx.Node:
    """U[p[ids]], at the insertion point: ids of any shape S, result (*S, d)."""
    shape = value(ids).shape
    flat = ids if len(shape) == 1 else emit(gm, aten.reshape.default, (ids, [-1]))
    # `index_select` reads single elements twice as fast as an index of any shape.
    place = emit(gm, aten.index_select.default, (places, 0, flat))
    if flat is not ids:
        sizes = [
            n if isinstance(n, int) else emit(gm, aten.sym_size.int, (ids, k)) for k, n in enumerate(shape)
        ]
        place = emit(gm, aten.reshape.default, (place, sizes))
    return emit(gm, aten.embedding.default, (rows, place))


def is_place(gm: fx.GraphModule, ids: fx.Node) -> bool:
    """Whether these ids were read from such a map."""
    if is_call(ids, aten.reshape.default) and isinstance(ids.args[0], fx.Node):
        ids = ids.args[0]
    if not is_call(ids, aten.index_select.default) or ids.args[1] != 0:
        return False
    places = constant(gm, ids.args[0])
    return places is not None and places.ndim == 1 and places.dtype is torch.int32


def read_by_map(gm: fx.GraphModule, table: Table, rows: fx.Node, places: Tensor) -> None:
    """Every lookup of a table as one of these rows, by the place of each id (V,)."""
    held = add_constant(gm, f"{table.name}_places", places.int())
    read_otherwise(gm, table, lambda ids: look_up(gm, held, rows, ids))
