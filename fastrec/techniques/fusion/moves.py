"""What every rule that moves tables into one has to see to: order of nodes, strides, and the record of the
moves.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from ...earlier import origin_of, set_origin, side_by_side
from ...graph import is_call
from .lookup_tables import mutated
from .table_layout import Segment

__all__ = ["allow_strides", "forget_moved", "hoist", "reads_strides", "record_moves"]

aten = torch.ops.aten
_STRIDES = (
    aten.as_strided.default,
    aten.view.dtype,
    aten.view_as_complex.default,
    aten.view_as_real.default,
)


def reads_strides(gm: fx.GraphModule) -> bool:
    """Whether some op of the graph depends on how its tensor lies in memory."""
    return any(is_call(node, *_STRIDES) for node in gm.graph.nodes)


def hoist(gm: fx.GraphModule, nodes: list[fx.Node], anchor: fx.Node) -> None:
    """Moves what `nodes` come from in front of `anchor`, in their order; none of it depends on `anchor`."""
    position = {node: index for index, node in enumerate(gm.graph.nodes)}
    late: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if position[node] > position[anchor] and node not in late:
            late.add(node)
            pending.extend(node.all_input_nodes)
    for node in sorted(late, key=position.__getitem__):
        anchor.prepend(node)


def record_moves(gm: fx.GraphModule, segments: Iterable[Segment], name: str) -> None:
    """Notes where each original table is now; a table moved before is followed to its new place."""
    old: dict[str, tuple[str, int, int, int, int]] = gm.meta.get("moved", {})
    moved = dict(old)
    made = {target for target, *_ in old.values()}
    parts = []
    for segment in segments:
        for table, column in zip(segment.tables, segment.columns, strict=True):
            parts.append((origin_of(gm, table.names[0], table.tensor), segment.row, column))
            for original in table.names:
                if original not in made:
                    moved[original] = (name, segment.row, table.rows, column, table.width)
            for original, (target, row, rows, first, columns) in old.items():
                if target in table.names:
                    moved[original] = (name, segment.row + row, rows, column + first, columns)
    gm.meta["moved"] = moved
    set_origin(gm, name, side_by_side(parts))


def allow_strides(gm: fx.GraphModule) -> None:
    """A piece of a gather has strides, which `view` may refuse: `reshape` copies where it must."""
    written = mutated(gm)
    for node in gm.graph.nodes:
        if is_call(node, aten.view.default) and node not in written:
            node.target = aten.reshape.default


def forget_moved(gm: fx.GraphModule) -> None:
    """Of the tables that originals were moved into, those that are gone are no longer named."""
    held = dict(gm.named_buffers()) | dict(gm.named_parameters())
    gm.meta["moved"] = {old: new for old, new in gm.meta.get("moved", {}).items() if new[0] in held}
