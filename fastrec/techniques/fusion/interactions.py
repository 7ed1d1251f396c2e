"""The dot products of all fields in three blocks: of the request's fields, across, and of the candidate's (A5).

    Z = [U | V]        U (1, F_u, d) the request's fields, V (N, F_c, d) the candidate's
    Z Z^T  =  [ U U^T    (V U^T)^T ]        U U^T once for all candidates,
              [ V U^T     V V^T    ]        V U^T one product with the request's d x F_u matrix

Of a symmetric matrix each pair is made once, whichever of its two places was selected. What follows reads the pairs
as a join: those of U alone are the request's part of it, so a linear map of them goes into its bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ...graph import emit, is_call, operator_name, value
from .join import Join, take
from .once import dimension

__all__ = ["gram", "pairs", "turned"]

aten = torch.ops.aten


def gram(node: Any) -> fx.Node | None:
    """The Z (N, F, d) of a product Z Z^T, or None."""
    if not is_call(node, aten.bmm.default, aten.matmul.default):
        return None
    left, right = node.args[:2]
    return left if isinstance(left, fx.Node) and turned(right) is left else None


def turned(node: Any) -> fx.Node | None:
    """The x (N, F, d) of a transpose (N, d, F), or None."""
    name = operator_name(node) if isinstance(node, fx.Node) else ""
    if name not in ("transpose", "permute", "mT") or value(node).ndim != 3:
        return None
    if name == "permute":
        axes = {1, 2} if list(node.args[1]) == [0, 2, 1] else set()
    else:
        axes = {1, 2} if name == "mT" else {dimension(node, 1) % 3, dimension(node, 2) % 3}
    source = node.args[0]
    return source if axes == {1, 2} and isinstance(source, fx.Node) else None


def pairs(gm: fx.GraphModule, node: fx.Node, z: Join, flat: Sequence[int]) -> Join | None:
    """The join of the dot products at these places of the flat (F, F) matrix; None where it is of one part."""
    fields, mine = len(z.order), z.width
    places = [sorted((z.order[k // fields], z.order[k % fields])) for k in flat]
    # In the order of each product's own entries, so that most often none is moved.
    kinds = [(low >= mine) + (high >= mine) for low, high in places]
    of_request, across, of_candidate = (
        sorted({(high, low) for (low, high), kind in zip(places, kinds, strict=True) if kind == wanted})
        for wanted in range(3)
    )
    if not of_request or not (across or of_candidate):
        return None
    once, each = z.once, z.each
    theirs = fields - mine if z.plain else int(value(each).shape[1])
    with gm.graph.inserting_before(node):
        made = _chosen(gm, _product(gm, once, once), [low * mine + high for high, low in of_request])
        parts = []
        if across:
            # One matrix for all candidates: the rows of V are a plain stack of vectors to it.
            matrix = emit(gm, aten.transpose.int, (emit(gm, aten.select.int, (once, 0, 0)), 0, 1))
            product = emit(gm, aten.matmul.default, (each, matrix))
            parts.append(_chosen(gm, product, [(high - mine) * mine + low for high, low in across]))
        if of_candidate:
            wanted = [(low - mine) * theirs + high - mine for high, low in of_candidate]
            parts.append(_chosen(gm, _product(gm, each, each), wanted))
        joined = parts[0] if len(parts) == 1 else emit(gm, aten.cat.default, (parts, 1))
    where = {pair: k for k, pair in enumerate([*of_request, *across, *of_candidate])}
    order = [where[high, low] for low, high in places]
    return Join(1, 0, made, joined, tuple(order))


def _product(gm: fx.GraphModule, left: fx.Node, right: fx.Node) -> fx.Node:
    return emit(gm, aten.bmm.default, (left, emit(gm, aten.transpose.int, (right, 1, 2))))


def _chosen(gm: fx.GraphModule, product: fx.Node, flat: list[int]) -> fx.Node:
    """Some entries of the last two dimensions."""
    rows, (height, width) = value(product).shape[0], value(product).shape[1:]
    opened = emit(gm, aten.reshape.default, (product, [1 if isinstance(rows, int) else -1, height * width]))
    return take(gm, opened, 1, flat)
