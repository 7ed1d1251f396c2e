"""All lookups of a model become one gather from one table.

    embedding(E_f, id_f)  f = 1..F      =     G[:, f, a:b]   with   G = embedding(T, ids + offsets)

`T` holds the tables below each other, and tables read by the same id (a 16-wide embedding and its 1-wide
first-order weight, say) side by side in one row: for F fields of V_f rows, `T` is (sum V_f, 16 + 1), `ids`
(N, F), `offsets` (F,), `G` (N, F, 17). Nothing is rounded: the outputs are equal bit by bit.

ids may be columns of one integer or float matrix (`x[:, f].long()`), vectors of (N,) or (N, 1), int32 or
int64, with elementwise steps on them (`% buckets`, `+ 1`, `clamp`); see `id_columns`. A table read by several
ids (item and history) is one segment of `T`. Longer ids, (N, T), keep a gather of their own: taking them into
the columns' gather was slower at every size (8 fields and a history of 50 in one thread: 27 -> 31 us at N=1,
320 -> 350 at N=100, 5.15 -> 5.53 ms at N=1000), and so was interleaving two histories as (N, T, 2) (9.9 ->
11.0, 298 -> 318, 2626 -> 2692). Tables read by the same (N, T) ids still share a row.

A DeepFM of 26 fields of 100k rows (16 + 1) and an MLP of 400 x 3, one thread, with the pieces' `stack` and
`cat` collapsed: 626 -> 193 us at N=1, 2216 -> 1513 at N=100, 13.8 -> 12.0 ms at N=1000 (177 calls -> 24);
with an MLP of 64, ids as 26 vectors: 432 -> 133, 767 -> 406, 3491 -> 2314; ids as columns of floats: 514 ->
126, 1022 -> 434, 3926 -> 2611.

When it does not apply: ids that come from another lookup, or constant ids; tables that some op writes into
(`max_norm`) or that are used otherwise as well (tied output weights) are not moved, since their memory would
be held twice, though several lookups of one of them still become one gather; tables of very different width;
too few lookups to pay. `padding_idx` has no effect when nothing is trained: rows are kept as stored.

**Ids out of range** read a neighbour's rows here where the separate tables raise. The guards in front of the
compressed model check every id against the captured, unfused graph, so the rule does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...graph import add_constant, emit, value
from ..base import Change
from .id_columns import pack_ids
from .lookup_tables import find_tables
from .moves import allow_strides, hoist, reads_strides, record_moves
from .table_layout import Block, Gather, Stack, plan

__all__ = ["stack_lookups"]

aten = torch.ops.aten


def stack_lookups(gm: fx.GraphModule) -> list[Change]:
    """Makes one gather of the lookups of each table width; edits `gm` in place.

    Cost: a copy of the tables it moves (`added_bytes`), which `gm.meta["moved"]` lists as
    `original -> (stacked, row, rows, column, columns)` so that the originals can be dropped.
    """
    if reads_strides(gm):
        return []
    stacks = [stack for stack in plan(find_tables(gm)) if stack.gathers]
    changes = [_rewrite(gm, stack) for stack in stacks]
    if changes:
        allow_strides(gm)
    return changes


def _rewrite(gm: fx.GraphModule, stack: Stack) -> Change:
    names = [table.names[0] for segment in stack.segments for table in segment.tables]
    lookups = sum(len(gather.blocks) for gather in stack.gathers)
    added = 0
    if stack.kept:
        first = stack.gathers[0].blocks[0].lookup.node.args[0]
        assert isinstance(first, fx.Node)
        weight = first
        hoist(gm, [weight], next(iter(gm.graph.nodes)))
    else:
        table = stack.build()
        added = table.nbytes
        weight = add_constant(gm, "stacked_table", table)
        record_moves(gm, stack.segments, str(weight.target))
    for gather in stack.gathers:
        _gather(gm, gather, weight)
    rows, width = value(weight).shape
    detail = (
        f"{lookups} lookups of {len(names)} tables are {len(stack.gathers)} of one table ({rows}, {width})"
    )
    return Change("stack lookups", names[0], detail, added)


def _gather(gm: fx.GraphModule, gather: Gather, weight: fx.Node) -> None:
    """Emits one gather in front of its first lookup and puts its pieces in the lookups' places."""
    position = {node: index for index, node in enumerate(gm.graph.nodes)}
    anchor = min((block.lookup.node for block in gather.blocks), key=position.__getitem__)
    piece = (_columns if gather.columns else _alone)(gm, gather, weight, anchor)
    pieces = [(block.lookup.node, piece(block)) for block in gather.blocks]
    for node, found in pieces:
        node.replace_all_uses_with(found)
        gm.graph.erase_node(node)


def _columns(
    gm: fx.GraphModule, gather: Gather, weight: fx.Node, anchor: fx.Node
) -> Callable[[Block], fx.Node]:
    """G (N, F, width) of one id column each; gives what cuts a lookup's piece from it."""
    position = {node: index for index, node in enumerate(gm.graph.nodes)}
    unique: dict[Any, Block] = {}
    # in the order in which the widest pieces appear, so that their `cat` most often is the gather itself
    ordered = sorted(gather.blocks, key=lambda block: (block.start - block.stop, position[block.lookup.node]))
    for block in ordered:
        unique.setdefault((id(block.segment), block.lookup.ids.key), block)
    columns = [block.lookup.ids.columns[0] for block in unique.values()]
    hoist(gm, [column.base for column in columns], anchor)
    with gm.graph.inserting_before(anchor):
        ids, places = pack_ids(gm, columns, [block.segment.row for block in unique.values()])
        rows = emit(gm, aten.embedding.default, (weight, ids))
    place = dict(zip(unique, places, strict=True))
    cuts: dict[Any, fx.Node] = {}

    def piece(block: Block) -> fx.Node:
        """(N, w) for ids (N,); (N, 1, w) for ids (N, 1). Column cuts are shared by all fields."""
        field = place[id(block.segment), block.lookup.ids.key]
        flat = len(block.lookup.ids.shape) == 1
        key = (block.start, block.stop)
        with gm.graph.inserting_before(anchor):
            if key not in cuts:
                cuts[key] = _cut(gm, rows, block)
            if (*key, field, flat) not in cuts:
                target, args = (
                    (aten.select.int, (1, field)) if flat else (aten.slice.Tensor, (1, field, field + 1))
                )
                cuts[*key, field, flat] = emit(gm, target, (cuts[key], *args))
        return cuts[*key, field, flat]

    return piece


def _alone(
    gm: fx.GraphModule, gather: Gather, weight: fx.Node, anchor: fx.Node
) -> Callable[[Block], fx.Node]:
    """One lookup of its own, ids of any shape; gives what cuts each table's columns from it."""
    first = gather.blocks[0]
    ids = first.lookup.ids.node
    hoist(gm, [ids], anchor)
    with gm.graph.inserting_before(anchor):
        if first.segment.row:
            if value(ids).dtype != torch.int64:
                ids = emit(gm, aten.to.dtype, (ids, torch.int64))
            ids = emit(gm, aten.add.Tensor, (ids, first.segment.row))
        rows = emit(gm, aten.embedding.default, (weight, ids))
    cuts: dict[tuple[int, int], fx.Node] = {}

    def piece(block: Block) -> fx.Node:
        key = (block.start, block.stop)
        with gm.graph.inserting_before(anchor):
            if key not in cuts:
                cuts[key] = _cut(gm, rows, block)
        return cuts[key]

    return piece


def _cut(gm: fx.GraphModule, rows: fx.Node, block: Block) -> fx.Node:
    """The columns of the block's table."""
    axis = value(rows).ndim - 1
    if (block.start, block.stop) == (0, value(rows).shape[axis]):
        return rows
    return emit(gm, aten.slice.Tensor, (rows, axis, block.start, block.stop))
