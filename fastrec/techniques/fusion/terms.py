"""What a linear map's argument is summed and joined from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ...graph import emit, operator_name, value
from .linears import linear_weights
from .once import dimension

__all__ = ["joined", "opened", "summands", "weights"]

aten = torch.ops.aten


def weights(gm: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor | None] | None:
    """The weight and bias of a linear map, constant floats; None where they are not."""
    held = linear_weights(gm, node)
    return held if held is not None and held[0].is_floating_point() else None


def opened(x: fx.Node, columns: Tensor, whole: fx.Node | None = None) -> list[tuple[fx.Node, Tensor]]:
    """The terms of `columns @ x`, x (N, d): what one reader alone sums and joins, and the columns that meet each.

    `whole` is taken as it is.
    """
    found, pending = [], [(x, columns)]
    while pending:
        node, mine = pending.pop()
        if node is whole or len(node.users) != 1 or node.kwargs:
            found.append((node, mine))
        elif operator_name(node) in ("cat", "concat") and dimension(node, 1) % 2 == 1:
            parts: Any = node.args[0]
            widths = [int(value(part).shape[1]) for part in parts]
            pending += reversed(list(zip(parts, torch.split(mine, widths, 1), strict=True)))
        elif (sides := _sides(node)) is not None:
            pending += reversed([(side, sign * mine) for side, sign in sides])
        else:
            found.append((node, mine))
    return found


def summands(x: fx.Node) -> list[tuple[fx.Node, int]]:
    """What is added up to x, by it alone, each with its sign; some may have one row."""
    found, pending = [], [(x, 1)]
    while pending:
        node, sign = pending.pop()
        sides = _sides(node, broadcast=True) if node is x or len(node.users) == 1 else None
        if sides is None:
            found.append((node, sign))
        else:
            pending += reversed([(side, sign * inner) for side, inner in sides])
    return found


def joined(gm: fx.GraphModule, parts: list[fx.Node]) -> fx.Node:
    """Matrices side by side."""
    return parts[0] if len(parts) == 1 else emit(gm, aten.cat.default, (parts, 1))


def _sides(x: fx.Node, *, broadcast: bool = False) -> list[tuple[fx.Node, int]] | None:
    """Both sides of a sum or difference, where they have its shape, or one row of it."""
    name, shape = operator_name(x), [str(n) for n in value(x).shape]
    if name not in ("add", "sub") or x.kwargs or len(x.args) != 2:
        return None
    sides = [side for side in x.args if isinstance(side, fx.Node)]
    shapes = [shape, ["1", *shape[1:]]] if broadcast else [shape]
    if len(sides) != 2 or any([str(n) for n in value(side).shape] not in shapes for side in sides):
        return None
    return [(sides[0], 1), (sides[1], -1 if name == "sub" else 1)]
