"""The fields of a graph: what one input column looks up, and the rows that stand for it.

    embedding(T, x[:, k])           one row for each row of the batch: a field
    embedding(T, x)                 ids of one kind: a field, a history; where every column has ids of its own: K fields
    embedding_bag(T, x)             their sum or mean, likewise

Lookups that come from the same columns are one field, whatever tables they read.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit, is_call, sweep, value
from ...inputs import Feature
from ..fusion.join import take
from ..reads import Read, Table, find_tables, ids_of, put_in_place
from ..traffic import row_counts, values_seen
from .origins import Origin, Origins, words_of

__all__ = ["Field", "Part", "drop", "find_fields"]

aten = torch.ops.aten
_FLAT = (aten.view.default, aten.reshape.default, aten.flatten.using_ints)
_LOOKUPS = (aten.embedding.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx)


@dataclass(frozen=True)
class Part:
    """One lookup, or one column of its ids, and the mean of the rows (d,) that calibration looks up there."""

    table: Table
    read: Read
    column: int | None
    row: Tensor

    @property
    def lookups(self) -> int:
        """Rows that it looks up for each row of a batch."""
        if self.column is not None:
            return 1
        return self.read.bag or math.prod(n for n in value(self.read.ids).shape if isinstance(n, int))


@dataclass
class Field:
    """What these input columns look up, and why it must stay, if it must."""

    name: str
    origin: Origin
    parts: list[Part] = field(default_factory=list)
    reason: str = ""


def find_fields(
    gm: fx.GraphModule, features: Sequence[Feature], batches: Sequence[Sequence[Tensor]], technique: str
) -> list[Field]:
    """The fields of a graph that writes nothing in place, in its order. Cost: what ids take of a run, a pass over each table."""
    tables = find_tables(gm)
    origins = Origins(gm)
    seen = values_seen(gm, list(dict.fromkeys(read.ids for table in tables for read in table.reads)), batches)
    reasons = {table.name: table.reason for table in tables}
    fields: dict[Origin, Field] = {}
    known: dict[fx.Node, tuple[Table, Read]] = {r.node: (table, r) for table in tables for r in table.reads}

    def of(origin: Origin) -> Field:
        return fields.setdefault(origin, Field(words_of(origin, features), origin))

    for node in gm.graph.nodes:
        if node not in known:
            unread = is_call(node, *_LOOKUPS) and constant(gm, node.args[0]) is not None
            if unread and (origin := origins.whole(node.args[1])):
                name = str(node.args[0].target)
                of(origin).reason = f"of {name}: {reasons.get(name) or 'it is looked up in another way'}"
            continue
        table, read = known[node]
        ids = torch.cat([one.reshape(-1).long() for one in seen[read.ids]])
        columns = _columns(origins, read, ids)
        for column, origin in enumerate(columns):
            if not origin:
                continue  # positions, counted and not given
            mine = ids if len(columns) == 1 else ids.reshape(-1, len(columns))[:, column]
            row = _mean(table, read, mine, technique)
            part = Part(table, read, None if len(columns) == 1 else column, row)
            found = of(origin)
            found.parts.append(part)
            found.reason = found.reason or _reason(part)
    return list(fields.values())


def _columns(origins: Origins, read: Read, ids: Tensor) -> tuple[Origin, ...]:
    """The origins of the fields in one lookup: one, or one for each column of ids, where each has a range of ids of its own."""
    node = _matrix(read) or read.ids
    columns = origins.of(node)
    whole = (origins.whole(node),)
    if len(columns) == 1 or not all(columns) or len(set(columns)) < len(columns):
        return whole
    drawn = ids.reshape(-1, len(columns))
    if len(drawn) < 2:
        return whole
    ends = torch.stack([drawn.amin(0), drawn.amax(0)], 1)
    ends = ends[ends[:, 0].argsort()]
    return columns if bool((ends[:-1, 1] < ends[1:, 0]).all()) else whole


def _matrix(read: Read) -> fx.Node | None:
    """The ids of bags as they were before they were laid end to end, (N, L); None where they never were."""
    source = read.ids.args[0] if read.bag and is_call(read.ids, *_FLAT) else None
    if not isinstance(source, fx.Node) or value(source).ndim != 2 or value(source).shape[1] != read.bag:
        return None
    return source


def _mean(table: Table, read: Read, ids: Tensor, technique: str) -> Tensor:
    """The mean of the rows that these ids look up (d,)."""
    counts = row_counts(replace(table, reads=[read]), {read.ids: ids}, technique)
    rows = counts.nonzero().flatten()
    weights = counts[rows].double()
    return (weights @ table.tensor[rows].double() / weights.sum().clamp_min(1)).to(table.tensor.dtype)


def _reason(part: Part) -> str:
    """Why one row may not stand for all, or nothing."""
    if not bool(part.row.isfinite().all()):
        return f"rows of {part.table.name} are not finite"
    if part.lookups > 1 and bool((~part.table.tensor.any(1)).any()):
        return f"{part.table.name} has a row of zeros: its histories are padded, and one row for all would hide their lengths"
    return ""


def drop(gm: fx.GraphModule, parts: Sequence[Part]) -> None:
    """Edits `gm`, a copy of the graph they were found in, so that each of these gives its row whatever the ids are."""
    nodes = {node.name: node for node in gm.graph.nodes}
    lookups: dict[fx.Node, list[Part]] = {}
    for part in parts:
        lookups.setdefault(part.read.node, []).append(part)
    for mine in lookups.values():
        read = mine[0].read
        read = replace(read, node=nodes[read.node.name], ids=nodes[read.ids.name])
        with gm.graph.inserting_before(read.node):
            found = _whole(gm, read, mine[0].row) if mine[0].column is None else _some(gm, read, mine)
            if any(user.op == "output" for user in read.node.users):
                # What is given away is a copy.
                found = emit(gm, aten.clone.default, (found,))
        put_in_place(gm, read, found)
    sweep(gm)


def _whole(gm: fx.GraphModule, read: Read, row: Tensor) -> fx.Node:
    """This row in every place of a lookup: a constant that is spread over the rows of the batch."""
    if read.bag:
        rows: Any = emit(gm, aten.sym_size.int, (read.ids, 0))
        rows = emit(gm, operator.floordiv, (rows, read.bag))
        return _spread(gm, read, (row if read.mean else row * read.bag)[None], [rows, len(row)])
    shape = value(read.ids).shape
    sizes = [
        n if isinstance(n, int) else emit(gm, aten.sym_size.int, (read.ids, k)) for k, n in enumerate(shape)
    ]
    once = row.expand(*(n if isinstance(n, int) else 1 for n in shape), len(row))
    return _spread(gm, read, once, [*sizes, len(row)])


def _some(gm: fx.GraphModule, read: Read, parts: Sequence[Part]) -> fx.Node:
    """These rows in their columns of a lookup of many fields, the others looked up."""
    ids = _matrix(read) or ids_of(gm, read)
    rows, width = value(ids).shape
    gone = {part.column: part.row for part in parts}
    kept = [column for column in range(width) if column not in gone]
    count = rows if isinstance(rows, int) else emit(gm, aten.sym_size.int, (ids, 0))
    fixed = torch.stack(list(gone.values()))
    looked_up = (
        [emit(gm, aten.embedding.default, (read.node.args[0], take(gm, ids, 1, kept)))] if kept else []
    )
    if not read.bag:
        found = _spread(gm, read, fixed[None], [count, *fixed.shape])
        if looked_up:
            found = emit(gm, aten.cat.default, ([*looked_up, found], 1))
        order = [*kept, *gone]
        return take(gm, found, 1, [order.index(column) for column in range(width)])
    total = fixed.double().sum(0, keepdim=True).to(fixed.dtype)
    found = _spread(gm, read, total, [count, len(fixed[0])])
    if looked_up:
        found = emit(gm, aten.add.Tensor, (emit(gm, aten.sum.dim_IntList, (looked_up[0], [1])), found))
    return emit(gm, aten.div.Tensor, (found, width)) if read.mean else found


def _spread(gm: fx.GraphModule, read: Read, once: Tensor, sizes: list[Any]) -> fx.Node:
    held = add_constant(gm, f"{read.node.name}_mean", once.contiguous())
    return emit(gm, aten.expand.default, (held, sizes))
