"""Which tables a graph looks rows up in, by which ids, and which of these tables may be moved.

A table may be moved into another one when every use of it is a lookup: then the graph forgets the original. A
table with any other use (the output matrix of tied weights, say) must stay as it is, or its memory would be
held twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...graph import constant, is_call, value
from .id_columns import IdReader, Ids, identity

__all__ = ["Lookup", "Table", "find_tables", "mutated", "ready_ids"]

aten = torch.ops.aten
_LOOKUPS = (aten.embedding.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx)
_MAY_ALIAS = (aten.reshape.default, aten.contiguous.default, aten.to.dtype, aten.flatten.using_ints)


@dataclass(frozen=True)
class Lookup:
    """One `embedding(table, ids)`."""

    node: fx.Node
    ids: Ids


@dataclass
class Table:
    """A constant (rows, width), its attribute names in the graph, and the lookups that read it."""

    tensor: Tensor
    names: list[str]
    lookups: list[Lookup] = field(default_factory=list)
    movable: bool = True

    @property
    def rows(self) -> int:
        """Rows, one per id."""
        return self.tensor.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.tensor.shape[1]

    @property
    def readers(self) -> frozenset[tuple[object, ...]]:
        """The different ids that read the table."""
        return frozenset(lookup.ids.key for lookup in self.lookups)


def find_tables(gm: fx.GraphModule) -> list[Table]:
    """The tables of a graph in the order of their first lookup, each with at least one lookup.

    Only lookups whose ids come from the inputs by other means than lookups count; another use makes its table
    immovable.
    """
    written = mutated(gm)
    reader = IdReader(gm, written)
    ready = ready_ids(gm, written)
    tables: dict[tuple[Any, ...], Table] = {}
    storages: dict[int, set[tuple[Any, ...]]] = {}
    for node in gm.graph.nodes:
        tensor = constant(gm, node)
        if tensor is None or type(tensor) not in (Tensor, nn.Parameter):
            continue
        storage = tensor.untyped_storage().data_ptr()
        key = identity(tensor)
        storages.setdefault(storage, set()).add(key)
        table = tables.setdefault(key, Table(tensor, []))
        name = str(node.target)
        if name not in table.names:
            table.names.append(name)
        plain = tensor.layout == torch.strided and tensor.ndim == 2 and node not in written
        for user in node.users:
            if plain and _is_lookup(user, node) and user not in written and user.args[1] in ready:
                ids = user.args[1]
                assert isinstance(ids, fx.Node)
                table.lookups.append(Lookup(user, reader.read(ids)))
            else:
                table.movable = False
    for sharing in storages.values():
        # another tensor in the same storage keeps the memory alive, so a move would not free it
        if len(sharing) > 1:
            for key in sharing:
                tables[key].movable = False
    position = {node: index for index, node in enumerate(gm.graph.nodes)}
    found = [table for table in tables.values() if table.lookups]
    for table in found:
        table.lookups.sort(key=lambda lookup: position[lookup.node])
    return sorted(found, key=lambda table: position[table.lookups[0].node])


def mutated(gm: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose memory some op of the graph writes into."""
    found: set[fx.Node] = set()
    for node in gm.graph.nodes:
        schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
        if schema is None or not schema.is_mutable:
            continue
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            for written in given if isinstance(given, (list, tuple)) else [given]:
                if isinstance(written, fx.Node):
                    found.update(_memory_of(written))
    return found


def _memory_of(node: fx.Node) -> Iterator[fx.Node]:
    """The node and those it may be a view of."""
    yield node
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    view = schema is None or any(result.alias_info is not None for result in schema.returns)
    if node.op == "call_function" and (view or node.target in _MAY_ALIAS):
        for source in node.all_input_nodes:
            yield from _memory_of(source)


def _is_lookup(node: fx.Node, table: fx.Node) -> bool:
    if not is_call(node, aten.embedding.default) or node.args[0] is not table or node.args[1] is table:
        return False
    return value(node).ndim >= 2


def ready_ids(gm: fx.GraphModule, written: set[fx.Node]) -> set[fx.Node]:
    """Nodes that come from the inputs' values, past no lookup and no memory that is written into."""
    ready: set[fx.Node] = set()
    refused: set[fx.Node] = set()
    for node in gm.graph.nodes:
        sources = node.all_input_nodes
        if is_call(node, *_LOOKUPS) or node in written or any(source in refused for source in sources):
            refused.add(node)
        elif is_call(node, aten.sym_size.int):
            continue  # a size is no value: positions counted up to it are constants
        elif node.op == "placeholder" or any(source in ready for source in sources):
            ready.add(node)
    return ready
