"""Linear maps of what joins requests and candidates, in two products, that of the requests at their own rows.

    linear(cat([u[owner], c], -1), W, b)  =  linear(c, W_c, b) + linear(u, W_u)[owner]         W = [W_u, W_c], by columns

with u (R, T, ..., d_u) and c (N, T, ..., d_c), as where a history meets a candidate at each of T positions: per candidate and position d_c
columns of W are left, and a sum. The columns are copied. When it does not apply: to a weight that is computed, to a join along another
dimension or one that others read too, which would be written for them anyway, where the request's part is small, and to joins of vectors
(N, d), where two products, their rows picked and their sum were no faster than one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from ..graph import add_constant, constant, emit, is_call, value

__all__ = ["split_joins"]

aten = torch.ops.aten
_FEWEST = 256
"""Multiply-adds that have to be saved at each position of a candidate."""


def split_joins(gm: fx.GraphModule, picked: Collection[fx.Node]) -> bool:
    """Splits linear maps of joins, in place; whether there were any. `picked` are nodes that are computed at the requests' rows."""
    found = False
    for node in list(gm.graph.nodes):
        join = node.args[0] if is_call(node, aten.linear.default) else None
        weight = constant(gm, node.args[1]) if join is not None else None
        if weight is None or not isinstance(join, fx.Node) or not _is_join(join):
            continue
        parts: Any = join.args[0]
        mine, theirs = [part in picked for part in parts], [part not in picked for part in parts]
        widths = torch.tensor([int(value(part).shape[-1]) for part in parts])
        saved = int(widths[torch.tensor(mine)].sum()) * len(weight)
        if any(mine) and any(theirs) and saved >= _FEWEST:
            with gm.graph.inserting_before(node):
                ours = _product(gm, node, parts, widths, mine)
                rest = _product(gm, node, parts, widths, theirs, *node.args[2:])
                node.replace_all_uses_with(emit(gm, aten.add.Tensor, (rest, ours)))
            gm.graph.erase_node(node)
            found = True
    return found


def _is_join(node: fx.Node) -> bool:
    if not is_call(node, aten.cat.default):
        return False
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    alone = all(is_call(user, aten.linear.default) and user.args[1] is not node for user in node.users)
    return alone and value(node).dim() > 2 and dim in (-1, value(node).dim() - 1)


def _product(
    gm: fx.GraphModule, node: fx.Node, parts: Any, widths: torch.Tensor, chosen: list[bool], *bias: Any
) -> fx.Node:
    """The part of a linear map that reads some parts of a join."""
    weight = constant(gm, node.args[1])
    assert weight is not None
    columns = torch.tensor(chosen).repeat_interleave(widths)
    held = add_constant(gm, f"{node.name}_columns", weight[:, columns].contiguous())
    read = [part for part, mine in zip(parts, chosen, strict=True) if mine]
    joined = read[0] if len(read) == 1 else emit(gm, aten.cat.default, (read, -1))
    return emit(gm, aten.linear.default, (joined, held, *bias))
