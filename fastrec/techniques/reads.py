"""What reads each table of a graph: lookups, which may read other forms of it, or anything else, which may not.

embedding(T, ids), index_select(T, 0, ids)               rows by ids of any shape
embedding_bag(T, ids, arange(0, N L, L))                 sums or means of L rows each: the same of rows (N, L)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ..graph import constant, emit, is_call, value
from ..places import called
from .fusion.id_columns import identity, size
from .fusion.lookup_tables import mutated, ready_ids

__all__ = ["Read", "Table", "added_up", "find_tables", "ids_of", "put_in_place", "read_otherwise"]

aten = torch.ops.aten
_BAGS = (aten.embedding_bag.default, aten.embedding_bag.padding_idx)
_BAG_DEFAULTS = (None, None, None, False, 0, False, None, False, None)


@dataclass(frozen=True)
class Read:
    """One lookup; of bags the number of ids in each, and whether their mean is taken."""

    node: fx.Node
    ids: fx.Node
    bag: int = 0
    mean: bool = False


@dataclass
class Table:
    """A float matrix (V, d), its name in the graph, its lookups, and why it must stay as it is, if it must."""

    tensor: Tensor
    name: str
    reads: list[Read] = field(default_factory=list)
    reason: str = ""
    is_table: bool = False


def find_tables(gm: fx.GraphModule) -> list[Table]:
    """The tables of a graph with at least one lookup, in the graph's order."""
    written = mutated(gm)
    ready = ready_ids(gm, written)
    tables: dict[tuple[Any, ...], Table] = {}
    storages: dict[int, set[tuple[Any, ...]]] = {}
    for node in gm.graph.nodes:
        tensor = constant(gm, node)
        if tensor is None or tensor.layout != torch.strided or not tensor.numel():
            continue
        key = identity(tensor)
        storages.setdefault(tensor.untyped_storage().data_ptr(), set()).add(key)
        if tensor.ndim != 2 or not tensor.is_floating_point():
            continue
        table = tables.setdefault(key, Table(tensor, str(node.target)))
        for user in node.users:
            found = _read(user, node, table.tensor)
            table.is_table |= isinstance(found, Read) or is_call(user, *_BAGS)
            if isinstance(found, str):
                table.reason = table.reason or found
                continue
            table.reads.append(found)
            if user in written or node in written:
                table.reason = table.reason or "its memory is written to"
            elif found.ids not in ready:
                table.reason = table.reason or "its ids do not come from the inputs alone"
    for shared in storages.values():
        for key in shared if len(shared) > 1 else ():
            if key in tables:
                tables[key].reason = tables[key].reason or "another constant lies in the same memory"
    return [table for table in tables.values() if table.is_table]


def _read(user: fx.Node, node: fx.Node, table: Tensor) -> Read | str:
    """How `user` reads the table, or why that is no lookup that could read another form of it."""
    reason = f"it is read otherwise as well, by {called(user) or user.op}"
    if sum(argument is node for argument in user.args) != 1 or user.args[0] is not node:
        return reason
    if is_call(user, aten.embedding.default):
        ids: Any = user.args[1]
        return Read(user, ids) if value(user).ndim >= 2 else reason
    if is_call(user, aten.index_select.default):
        ids = user.args[2]
        return Read(user, ids) if user.args[1] == 0 and value(ids).ndim == 1 else reason
    return _read_bag(user, table) if is_call(user, *_BAGS) else reason


def _read_bag(user: fx.Node, table: Tensor) -> Read | str:
    args: tuple[Any, ...] = (*user.args, *_BAG_DEFAULTS[len(user.args) :])
    _, ids, offsets, _, mode, _, weights, last, padding = args
    if user.kwargs or weights is not None:
        return "its bags are weighted"
    if mode == 2:
        return "its bags are maxima"
    if padding is not None and (mode != 0 or bool(table[padding].count_nonzero())):
        return "its bags leave out a padding row that is not zero, or take a mean without it"
    if any(used.users and used.args[1] != 0 for used in user.users):
        return "more than the result of its bags is read"
    if last or not is_call(offsets, aten.arange.start_step) or value(ids).ndim != 1:
        return "its bags are of different sizes"
    start, end, step = (*offsets.args, 1)[:3]
    last_id = end.meta["val"] if isinstance(end, fx.Node) else end
    if start != 0 or not isinstance(step, int) or size(last_id) != size(value(ids).shape[0]):
        return "its bags are of different sizes"
    return Read(user, ids, step, mode == 1)


def ids_of(gm: fx.GraphModule, read: Read) -> fx.Node:
    """The ids of a lookup, at the insertion point: of bags (N, L)."""
    return emit(gm, aten.reshape.default, (read.ids, [-1, read.bag])) if read.bag else read.ids


def added_up(gm: fx.GraphModule, read: Read, rows: fx.Node) -> fx.Node:
    """What a lookup gives where these are the rows of its ids, at the insertion point: of bags their sum or mean."""
    if not read.bag:
        return rows
    return emit(gm, aten.mean.dim if read.mean else aten.sum.dim_IntList, (rows, [1]))


def put_in_place(gm: fx.GraphModule, read: Read, found: fx.Node) -> None:
    """`found`, made just before a lookup, in place of what the lookup gives."""
    if read.bag:
        for user in list(read.node.users):
            if user.args[1] == 0:
                user.replace_all_uses_with(found)
            gm.graph.erase_node(user)
    else:
        read.node.replace_all_uses_with(found)
    gm.graph.erase_node(read.node)


def read_otherwise(gm: fx.GraphModule, table: Table, look_up: Callable[[fx.Node], fx.Node]) -> list[fx.Node]:
    """Every lookup as one by `look_up`: of ids of any shape S the rows (*S, d). What each gives now."""
    made = []
    for read in table.reads:
        with gm.graph.inserting_before(read.node):
            found = added_up(gm, read, look_up(ids_of(gm, read)))
        put_in_place(gm, read, found)
        made.append(found)
    return made
