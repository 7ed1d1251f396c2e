"""A linear map of a linear map is one, whatever only moves rows between them (A11).

    W2 P(s (W1 x + b1)) + b2  =  P((s W2 W1) x + s W2 b1) + b2         x (..., d), W1 (h, d), W2 (o, h)

P reshapes, transposes, squeezes or unsqueezes the dimensions before the last, which it leaves whole, so it moves rows
of o channels as it moved rows of h; s is a number. A row takes d o multiply-adds in place of d h + h o.

New weights are computed in float64 and rounded once. When it does not apply: the inner map, or anything on the way, has
another reader; weights that are not constant; a bottleneck, where d o is more than d h + h o; rows that are repeated or
picked on the way, where the two maps do not have the same rows; a graph that writes in place, or reads strides of what
is moved.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from ...graph import add_constant, emit, is_call, value
from ..base import Change
from .linears import linear_weights
from .moves import reads_strides
from .purity import writes
from .sizes import shape_of

__all__ = ["is_scale", "merge_chains", "moves_after", "moves_before", "replayed", "scale_of"]

aten = torch.ops.aten
_SIZED = (aten.view.default, aten.reshape.default)
_MOVES = (
    *_SIZED,
    *(aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.dim, aten.squeeze.dims),
    *(aten.unsqueeze.default, aten.transpose.int, aten.permute.default),
)


def merge_chains(gm: fx.GraphModule) -> list[Change]:
    """Merges linear maps of linear maps; edits `gm` in place. Adds the merged weights."""
    if writes(gm):
        return []
    strided = reads_strides(gm)
    changes: list[Change] = []
    for outer in list(gm.graph.nodes):
        if is_call(outer, aten.linear.default):
            inner, moves = moves_before(outer)
            if not (moves and strided) and (change := _merge(gm, inner, moves, outer)) is not None:
                changes.append(change)
    return changes


def _merge(gm: fx.GraphModule, inner: fx.Node, moves: list[fx.Node], outer: fx.Node) -> Change | None:
    if not is_call(inner, aten.linear.default) or len(inner.users) != 1:
        return None
    first, second = linear_weights(gm, inner), linear_weights(gm, outer)
    if first is None or second is None:
        return None
    (w1, b1), (w2, b2) = first, second
    if w2.shape[0] * w1.shape[1] > w1.numel() + w2.numel() or w1.dtype != w2.dtype:
        return None
    weight, bias = scale_of(moves) * w2.double() @ w1.double(), None if b2 is None else b2.double()
    if b1 is not None:
        shift = scale_of(moves) * w2.double() @ b1.double()
        bias = shift if bias is None else bias + shift
    held = [tensor.to(w2.dtype) for tensor in (weight, bias) if tensor is not None]
    names = (f"{outer.name}_weight", f"{outer.name}_bias")
    with gm.graph.inserting_before(outer):
        constants = [add_constant(gm, name, tensor) for name, tensor in zip(names, held, strict=False)]
        made = replayed(gm, moves, emit(gm, aten.linear.default, (inner.args[0], *constants)))
    if shape_of(made) != shape_of(outer):
        return None
    outer.replace_all_uses_with(made)
    for node in (outer, *reversed(moves), inner):
        gm.graph.erase_node(node)
    added = sum(tensor.nbytes for tensor in held)
    return Change("merge chains", made.name, f"{outer.name} with {inner.name} before it", added)


def moves_before(outer: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """What a linear map reads, seen through moves of its rows that it alone reads, and the moves in order."""
    node, moves = outer.args[0], list[fx.Node]()
    assert isinstance(node, fx.Node)
    while len(node.users) == 1 and _moves_rows(node):
        moves.append(node)
        node = node.args[0]
        assert isinstance(node, fx.Node)
    return node, moves[::-1]


def moves_after(node: fx.Node) -> tuple[list[fx.Node], fx.Node | None]:
    """The moves of a node's rows, in order, up to the linear map that alone reads them; None where there is none."""
    moves: list[fx.Node] = []
    while len(node.users) == 1:
        user = next(iter(node.users))
        if is_call(user, aten.linear.default) and user.args[0] is node:
            return moves, user
        if not _moves_rows(user):
            break
        moves.append(user)
        node = user
    return moves, None


def replayed(gm: fx.GraphModule, moves: list[fx.Node], x: fx.Node) -> fx.Node:
    """The same moves of the rows of `x`, whose last dimension may have another size; scales are left out."""
    width = value(x).shape[-1]
    for move in moves:
        if is_call(move, *_SIZED):
            sizes: Any = move.args[1]
            x = emit(gm, aten.reshape.default, (x, [*sizes[:-1], width]))
        elif not is_call(move, aten.mul.Tensor, aten.div.Tensor):
            x = emit(gm, move.target, (x, *move.args[1:]), move.kwargs)
    return x


def _moves_rows(node: fx.Node) -> bool:
    """Whether the node moves rows of its argument, each whole, or multiplies them by a number."""
    if is_scale(node):
        return True
    if not is_call(node, *_MOVES):
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank, width = value(source).ndim, shape_of(source)[-1]
    # Of a last dimension of size 1 no size tells whether it is the same one.
    if width == 1 or not width.is_Integer or not shape_of(node) or shape_of(node)[-1] != width:
        return False
    dims, *others = list[Any](node.args[1:])
    if is_call(node, aten.transpose.int):
        return all(axis % rank != rank - 1 for axis in (dims, *others))
    if is_call(node, aten.permute.default):
        return bool(dims[-1] % rank == rank - 1)
    if is_call(node, aten.squeeze.dims):
        return all(axis % rank != rank - 1 for axis in dims)
    if is_call(node, aten.squeeze.dim, aten.unflatten.int):
        return bool(dims % rank != rank - 1)
    return True


def is_scale(node: fx.Node) -> bool:
    """Whether the node multiplies a tensor by a number, neither 0 nor infinite."""
    if not is_call(node, aten.mul.Tensor, aten.div.Tensor) or node.kwargs:
        return False
    source, number = node.args
    if not isinstance(source, fx.Node) or not isinstance(number, (int, float)) or isinstance(number, bool):
        return False
    if not math.isfinite(number) or number == 0:
        return False
    return value(source).dtype == value(node).dtype


def scale_of(moves: list[fx.Node]) -> float:
    """What these moves multiply by."""
    scale = 1.0
    for node in moves:
        if is_scale(node):
            number: Any = node.args[1]
            scale = scale * number if is_call(node, aten.mul.Tensor) else scale / number
    return scale
