"""Tables that hold the same bits are one constant, also where the other one is an output matrix.

    embedding(T_2, ids), T_2 = T_1 bit for bit   ->   embedding(T_1, ids)

What must stay as it is (an output matrix) is kept, or else the first of the tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from ...graph import constant
from ..base import Change
from ..fusion.id_columns import identity
from ..fusion.lookup_tables import mutated
from ..reads import Table
from .equal import digest, same_bits

__all__ = ["follow", "get", "share_whole"]


def share_whole(
    gm: fx.GraphModule, tables: Sequence[Table], counts: dict[str, Tensor], rule: str
) -> tuple[list[Change], list[Table]]:
    """Edits `gm` so that equal tables are one; the changes, and the tables left that are read by lookups alone.

    A table that takes up another's lookups has its counts as well.
    """
    own = {identity(table.tensor) for table in tables}
    shapes = {table.tensor.shape for table in tables}
    written = mutated(gm)
    others = [
        (node, tensor)
        for node in gm.graph.nodes
        if node not in written and (tensor := constant(gm, node)) is not None
        if tensor.layout is torch.strided and tensor.dtype is torch.float32 and tensor.shape in shapes
        if identity(tensor) not in own
    ]
    several = {shape for shape in shapes if sum(table.tensor.shape == shape for table in tables) > 1}
    several |= {tensor.shape for _, tensor in others}
    homes: dict[bytes, tuple[str, Tensor, Table | None]] = {}
    for node, tensor in others:
        homes.setdefault(digest(tensor), (str(node.target), tensor, None))
    changes: list[Change] = []
    left: list[Table] = []
    for table in tables:
        if table.tensor.shape not in several:
            left.append(table)
            continue
        name, tensor, home = homes.setdefault(digest(table.tensor), (table.name, table.tensor, table))
        if home is table or tensor.shape != table.tensor.shape or not same_bits(tensor, table.tensor):
            left.append(table)
            continue
        for node in _nodes(gm, table):
            follow(gm, str(node.target), name, *tensor.shape)
            node.replace_all_uses_with(get(gm, name))
            gm.graph.erase_node(node)
        if home is not None:
            home.reads += table.reads
            if counts:
                counts[home.name] = counts[home.name] + counts[table.name]
        detail = f"equal to {name}, bit for bit: {table.tensor.nbytes} -> 0 bytes"
        changes.append(Change(rule, table.name, detail))
    return changes, left


def get(gm: fx.GraphModule, name: str) -> fx.Node:
    """The constant of this name, in front of all that may read it."""
    node: fx.Node = next(node for node in gm.graph.nodes if node.op == "get_attr" and node.target == name)
    first = next(iter(gm.graph.nodes))
    if node is not first:
        first.prepend(node)
    return node


def follow(gm: fx.GraphModule, old: str, new: str, rows: int, columns: int) -> None:
    """Notes that the table `old` is the first rows of `new` now, and so is what was moved into it."""
    moved: dict[str, tuple[str, int, int, int, int]] = dict(gm.meta.get("moved", {}))
    if old not in {target for target, *_ in moved.values()}:
        moved[old] = (new, 0, rows, 0, columns)
    gm.meta["moved"] = {
        name: (new if target == old else target, *where) for name, (target, *where) in moved.items()
    }


def _nodes(gm: fx.GraphModule, table: Table) -> list[fx.Node]:
    """Every constant that is this tensor, by whatever name."""
    found = []
    for node in gm.graph.nodes:
        tensor = constant(gm, node)
        if tensor is not None and identity(tensor) == identity(table.tensor):
            found.append(node)
    return found
