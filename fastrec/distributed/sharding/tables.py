"""The tables of a captured program that may be held in parts, and every lookup of them.

A lookup is `op(T, ids, ...)`, and it gives the same bits when T is a small table of the rows that `ids` name, and `ids` where in it
they are. So whatever the operator (rows, bags with weights or without, rows held as small integers), all it takes is those rows.

Of some lookups only sums are read: of bags, and of rows that are added up at once, as those of tables that fusion multiplied with
the first layer are. These may be had as one vector from each shard as well.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...artifact import path_of
from ...graph import constant, is_call, is_random, value
from ...ops import INT4, INT8
from ...places import called
from ...subgraphs import past
from ...techniques.fusion.id_columns import identity
from ...techniques.fusion.lookup_tables import mutated
from .quick import quick

__all__ = ["LookedUpTable", "Lookup", "Reduction", "decoded", "find_tables"]

aten = torch.ops.aten
_BAGS = (aten.embedding_bag.default, aten.embedding_bag.padding_idx)
# Where the ids stand among the arguments; the table is the first.
_IDS: dict[Any, int] = {
    aten.embedding.default: 1, aten.index_select.default: 2, INT8: 1, INT4: 1, **dict.fromkeys(_BAGS, 1),
}  # fmt: skip
_BAG_DEFAULTS = (None, None, None, False, 0, False, None, False, None)
_OFFSETS, _MODE, _WEIGHTS, _LAST, _PADDING = 2, 4, 6, 7, 8
_ADDED = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Reduction:
    """That only sums of a lookup's rows are read: `result` is their node, `mean` says that they are divided by their number."""

    result: fx.Node
    mean: bool


@dataclass(frozen=True, eq=False)
class Lookup:
    """One lookup: its call, the node of its rows (of bags, of their sums), and how sums of it may be had, if so."""

    call: fx.Node
    result: fx.Node
    sums: Reduction | None = None

    @property
    def operands(self) -> list[fx.Node]:
        """What it takes beside the table."""
        return [node for node in self.call.all_input_nodes if node is not self.call.args[0]]

    @property
    def bags(self) -> bool:
        """Whether the call itself adds rows up."""
        return is_call(self.call, *_BAGS)

    def ids(self, values: Mapping[fx.Node, Any]) -> Tensor:
        """The ids of one batch."""
        ids: Tensor = values[self.call.args[_IDS[self.call.target]]]  # type: ignore[index]  # an argument of a node is of any type
        return ids

    def padding(self, rows: int) -> int | None:
        """The row of a table of so many rows that bags leave out."""
        given: Any = self._given()[_PADDING] if self.bags else None
        return None if given is None else int(given) % rows

    def flat(self, values: Mapping[fx.Node, Any], rows: int) -> tuple[Tensor, Tensor, int]:
        """Of one batch the ids (n,) that are added up, the number of the bag of each, ascending, and how many bags there are."""
        ids = self.ids(values)
        if not self.bags:
            count = ids.shape[:-1].numel()
            bags = torch.arange(count).repeat_interleave(ids.shape[-1])
        else:
            starts = values[self._given()[_OFFSETS]].long()
            count = len(starts) - 1 if self._given()[_LAST] else len(starts)
            ends = torch.cat([starts[1 : count + 1], starts.new_tensor([len(ids)])])[:count]
            bags = torch.arange(count).repeat_interleave(ends - starts[:count])
        ids, padding = ids.reshape(-1).long(), self.padding(rows)
        if padding is not None:
            kept = ids != padding
            ids, bags = ids[kept], bags[kept]
        return ids, bags, count

    def looked_up(
        self, table: Tensor, ids: Tensor, values: Mapping[fx.Node, Any], padding: int | None
    ) -> Tensor:
        """What the lookup gives, with these rows as its table and these places in it as its ids."""
        args: list[Any] = list(fx.node.map_arg(self.call.args[1:], lambda node: values.get(node)))
        args[_IDS[self.call.target] - 1] = ids
        if padding is not None:
            args[_PADDING - 1] = padding
        found = quick(self.call.target, table[0].nbytes)(table, *args, **self.call.kwargs)
        return found[0] if self.bags else found  # type: ignore[no-any-return]  # what an operator gives

    def _given(self) -> tuple[Any, ...]:
        return (*self.call.args, *_BAG_DEFAULTS[len(self.call.args) :])


@dataclass(frozen=True, eq=False)
class LookedUpTable:
    """A table (V, ...), its name, its lookups, and why it stays whole on every rank, if it does."""

    name: str
    tensor: Tensor
    lookups: tuple[Lookup, ...]
    reason: str = ""

    @property
    def rows(self) -> int:
        """V."""
        return len(self.tensor)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, as it travels."""
        return self.tensor[0].numel() * self.tensor.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self.rows * self.row_bytes


def decoded(lookup: Lookup, table: Tensor, ids: Tensor) -> Tensor:
    """The rows of these ids (n,) as the numbers that are added up: (n, d)."""
    if lookup.sums is None or lookup.bags:
        return table.index_select(0, ids)
    if lookup.call.target in (INT8, INT4):
        return quick(lookup.call.target, table[0].nbytes)(table, ids)  # type: ignore[no-any-return]  # one of our operators
    return table.index_select(0, ids).to(value(lookup.sums.result).dtype)


def find_tables(
    gm: fx.GraphModule, least_bytes: int = 0, only: Container[str] | None = None
) -> list[LookedUpTable]:
    """Every table that the graph looks rows up in, in its order, those that stay whole with the reason.

    Smaller ones than `least_bytes`, and those that are not among `only` (None: all are), stay whole. So do tables that are read by more than lookups, tables that are written to, and those whose ids
    come from lookups of another table that is held in parts, since all that travels does so at once.
    """
    written = mutated(gm)
    nodes: dict[tuple[Any, ...], list[fx.Node]] = {}
    for node in gm.graph.nodes:
        tensor = constant(gm, node)
        if tensor is not None and tensor.layout == torch.strided and tensor.ndim and tensor.numel():
            nodes.setdefault(identity(tensor), []).append(node)
    read = [found for same in nodes.values() if (found := _table(gm, same, written, least_bytes, only))]
    position = {node: number for number, node in enumerate(gm.graph.nodes)}
    read.sort(key=lambda table: position[table.lookups[0].call])
    apart = {table for table in read if not table.reason}
    made = []
    for table in read:
        if table in apart:
            before = past(node for one in table.lookups for node in one.operands)
            elsewhere = {one.call for other in apart for one in other.lookups}
            if any(is_random(node) or node in written for node in before):
                apart.discard(table)
                table = _whole(table, "its ids are drawn, or written to")
            elif not elsewhere.isdisjoint(before):
                apart.discard(table)
                table = _whole(table, "its ids come from other lookups")
        made.append(table)
    return made


def _whole(table: LookedUpTable, reason: str) -> LookedUpTable:
    return LookedUpTable(table.name, table.tensor, table.lookups, reason)


def _table(
    gm: fx.GraphModule,
    same: Sequence[fx.Node],
    written: set[fx.Node],
    least_bytes: int,
    only: Container[str] | None,
) -> LookedUpTable | None:
    """The table that these nodes are, None where no row of it is looked up."""
    tensor = constant(gm, same[0])
    assert tensor is not None
    lookups: list[Lookup] = []
    reason = "it is written to" if written & set(same) else ""
    for node in same:
        for user in node.users:
            found = _lookup(user, node)
            if isinstance(found, Lookup):
                lookups.append(found)
                reason = reason or ("what is looked up is written to" if user in written else "")
            else:
                reason = reason or found
    if not lookups:
        return None
    made = LookedUpTable(path_of(gm, str(same[0].target)), tensor, tuple(lookups), reason)
    if reason:
        return made
    if only is not None and made.name not in only:
        return _whole(made, "it is not asked for")
    small = f"its {made.nbytes:,} bytes are less than {least_bytes:,}"
    return made if made.nbytes >= least_bytes else _whole(made, small)


def _lookup(user: fx.Node, table: fx.Node) -> Lookup | str:
    """How a node looks rows up in the table, or why that is none."""
    other = f"it is read otherwise as well, by {called(user) or user.op}"
    position = _IDS.get(user.target) if user.op == "call_function" else None
    if position is None or user.args[0] is not table or user.args.count(table) != 1:
        return other
    if len(user.args) <= position or not isinstance(user.args[position], fx.Node):
        return other
    if is_call(user, aten.index_select.default) and user.args[1] != 0:
        return other
    if not is_call(user, *_BAGS):
        return Lookup(user, user, _added_up(user))
    parts = [used for used in user.users if used.users]
    if len(parts) != 1 or not is_call(parts[0], operator.getitem) or parts[0].args[1] != 0:
        return "more than the result of its bags is read"
    given = (*user.args, *_BAG_DEFAULTS[len(user.args) :])
    plain = given[_MODE] in (0, 1) and given[_WEIGHTS] is None and value(parts[0]).dtype in _ADDED
    return Lookup(user, parts[0], Reduction(parts[0], bool(given[_MODE] == 1)) if plain else None)


def _added_up(call: fx.Node) -> Reduction | None:
    """The sum or mean of looked-up rows over the last dimension of their ids, where nothing else reads them."""
    if is_call(call, aten.index_select.default):
        return None
    node = call
    while len(node.users) == 1:
        node = next(iter(node.users))
        if is_call(node, aten.to.dtype) and len(node.args) == 2:
            continue
        if not is_call(node, aten.sum.dim_IntList, aten.mean.dim) or len(node.args) != 2 or node.kwargs:
            return None
        dims, axes = node.args[1], value(call).ndim
        over = [int(dim) % axes for dim in dims] if isinstance(dims, (list, tuple)) else []
        fit = axes >= 2 and over == [axes - 2] and value(node).dtype in _ADDED
        return Reduction(node, is_call(node, aten.mean.dim)) if fit else None
    return None
