"""What an operator reads of its arguments where one position of its result is read.

    f(x, y, ...)[.., p, ..]  =  f'(x[.., q, ..], y, ...)       q the place of p in each argument that has one

Pointwise operators, broadcasting included, act position by position; so do linears, normalisations, softmaxes and
sums along other axes, lookups, joins, whatever only moves axes, and matrix products: rows come from the left
operand, columns from the right, batches from both. A query of an attention is a row of it.

An axis may be merged with others by a view: a place is the middle of three factors `(before, steps, after)` of an
axis, counted from the right so that broadcasting keeps it. When it does not apply: convolutions, recurrences,
cumulative sums, positions that a view tears apart. There the whole argument is read.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ...graph import is_call, value
from .purity import is_pure
from .sizes import shape_of

__all__ = ["MOVES", "NOTHING", "Part", "Place", "Row", "arguments", "parts_read"]

aten = torch.ops.aten
ONE = sympy.Integer(1)


@dataclass(frozen=True)
class Place:
    """Where a dimension lies in a tensor: the middle of `(before, size, after)` of the axis, a negative number."""

    axis: int
    before: sympy.Expr = ONE
    after: sympy.Expr = ONE

    @property
    def plain(self) -> bool:
        """Whether it is the whole axis."""
        return bool(self.before == 1 and self.after == 1)


@dataclass(frozen=True)
class Row:
    """A position per row: `index` (rows,), used by `target` (gather, or index, which counts negative ones back).

    `place` is the dimension that counts rows.
    """

    index: fx.Node
    target: Any
    rows: sympy.Expr
    place: Place


@dataclass(frozen=True)
class Part:
    """One position of `steps` that is read of a tensor: always the same one, or another for each row."""

    place: Place
    steps: int
    at: int | Row


NOTHING = object()
"""In the place of a part: the argument is not read at all."""

PartsRead = list[Any]
"""For each node among the arguments, in order: the `Part` read, None for all of it, or `NOTHING`."""


def arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, in order, as often as they occur."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def parts_read(node: fx.Node, part: Part) -> PartsRead | None:
    """What is read of the node's arguments where only `part` of its result is; None where that is not known."""
    if not is_pure(node):
        return None
    if isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags:
        return _aligned(node, part)
    rule = _RULES.get(node.target)
    return rule(node, part) if rule is not None else None


def _broadcast(argument: fx.Node, part: Part) -> Part | None:
    """The part of an argument that is broadcast to the result's shape; None where it is the same everywhere."""
    if not isinstance(argument.meta.get("val"), Tensor):
        return None
    axis, shape = part.place.axis, shape_of(argument)
    return None if -axis > len(shape) or shape[axis] == 1 else part


def _aligned(node: fx.Node, part: Part) -> PartsRead:
    return [_broadcast(argument, part) for argument in arguments(node)]


def _moved(part: Part, move: Callable[[Place], Place | None]) -> Part | None:
    """The part with its places moved; None where one has no place any more."""
    place = move(part.place)
    if place is None or isinstance(part.at, int):
        return None if place is None else replace(part, place=place)
    rows = move(part.at.place)
    return None if rows is None else replace(part, place=place, at=replace(part.at, place=rows))


def _first(node: fx.Node, part: Part | None, count: int = 1) -> PartsRead | None:
    """The part is read of the first arguments, and all of the others."""
    return None if part is None else [part] * count + [None] * (len(arguments(node)) - count)


def _kept(node: fx.Node, part: Part) -> PartsRead | None:
    return _first(node, part)


def _linear(node: fx.Node, part: Part) -> PartsRead | None:
    return _first(node, part) if part.place.axis != -1 else None


def _prelu(node: fx.Node, part: Part) -> PartsRead | None:
    """A slope for all, or one for each channel: dimension 1."""
    found = arguments(node)
    channels = value(found[1]).numel() > 1 and part.place.axis == 1 - value(found[0]).ndim
    return None if channels else _first(node, part)


def _layer_norm(node: fx.Node, part: Part) -> PartsRead | None:
    return _first(node, part) if -part.place.axis > len(_listed(node.args[1])) else None


def _along(node: fx.Node, part: Part) -> PartsRead | None:
    """Along one axis: softmax."""
    return _first(node, part) if part.place.axis != _from_right(node.args[1], value(node).ndim) else None


def _reduced(first: int) -> Callable[[fx.Node, Part], PartsRead | None]:
    def rule(node: fx.Node, part: Part) -> PartsRead | None:
        """Sums and the like along other axes, which are kept with size 1 or not at all."""
        argument = arguments(node)[0]
        rank = value(argument).ndim
        dims = _given(node, first, None)
        if dims is None or dims == []:
            return None
        gone = {_from_right(dim, rank) for dim in _listed(dims)}
        left = (
            range(-rank, 0)
            if value(node).ndim == rank
            else [axis for axis in range(-rank, 0) if axis not in gone]
        )
        moved = _moved(part, lambda place: replace(place, axis=left[place.axis]))
        return _first(node, moved) if moved is not None and moved.place.axis not in gone else None

    return rule


def _embedding(_: fx.Node, part: Part) -> PartsRead | None:
    moved = _moved(part, lambda place: replace(place, axis=place.axis + 1) if place.axis != -1 else None)
    return None if moved is None else [None, moved]


def _matmul(node: fx.Node, part: Part) -> PartsRead | None:
    left, right = arguments(node)[-2:]
    if min(value(left).ndim, value(right).ndim) < 2:
        return None
    axis = part.place.axis
    parts = [
        part if axis == -2 else None if axis == -1 else _broadcast(left, part),
        part if axis == -1 else None if axis == -2 else _broadcast(right, part),
    ]
    first = [_broadcast(argument, part) for argument in arguments(node)[:-2]]
    return [*first, *parts]


def _attention(node: fx.Node, part: Part) -> PartsRead | None:
    """Queries are rows of the result, channels of it come from the values, and batches from all."""
    found = arguments(node)
    if any(key == "enable_gqa" and given for key, given in node.kwargs.items()) or len(node.args) > 7:
        return None
    axis, causal = part.place.axis, len(node.args) > 5 and node.args[5]
    if axis == -2:
        if causal and not isinstance(part.at, int):
            return None
        return [part, None, None, *(_broadcast(mask, part) for mask in found[3:])]
    if axis == -1:
        return [None, None, part, *(None for _ in found[3:])]
    return [_broadcast(argument, part) for argument in found]


def _flat(node: fx.Node, part: Part) -> PartsRead | None:
    """Views: elements keep their order, so a dimension is what lies `outer` before and `inner` after it."""
    argument = arguments(node)[0]
    new, old = shape_of(node), shape_of(argument)

    def move(size: sympy.Expr) -> Callable[[Place], Place | None]:
        def find(place: Place) -> Place | None:
            outer = math.prod(new[: len(new) + place.axis], start=place.before)
            seen: sympy.Expr = ONE
            for index, length in enumerate(old):
                before = outer / seen
                after = length / (before * size)
                if before.is_integer and after.is_integer:
                    return Place(index - len(old), before, after)
                seen = seen * length
            return None

        return find

    place = move(sympy.Integer(part.steps))(part.place)
    if place is None:
        return None
    moved = replace(part, place=place)
    if isinstance(part.at, Row):
        rows = move(part.at.rows)(part.at.place)
        if rows is None:
            return None
        moved = replace(moved, at=replace(part.at, place=rows))
    return _first(node, moved)


def _transposed(node: fx.Node, part: Part) -> PartsRead | None:
    rank = value(node).ndim
    order = list(range(rank))
    if is_call(node, aten.permute.default):
        order = [dim % rank for dim in _listed(node.args[1])]
    else:
        one, other = (0, rank - 1) if is_call(node, aten.t.default) else node.args[1:3]
        one, other = _from_right(one, rank), _from_right(other, rank)
        order[one], order[other] = order[other], order[one]
    return _first(node, _moved(part, lambda place: replace(place, axis=order[place.axis] - rank)))


def _expand(node: fx.Node, part: Part) -> PartsRead | None:
    """To sizes, or to those of another tensor."""
    like = part if is_call(node, aten.expand_as.default) else None
    found = arguments(node)
    return [_broadcast(found[0], part), *(like for _ in found[1:])]


def _cat(node: fx.Node, part: Part) -> PartsRead | None:
    """Joined along the position's own axis, only the tensor that holds the position is read."""
    found = arguments(node)
    axis = _from_right(_given(node, 1, 0), value(node).ndim)
    if axis != part.place.axis:
        return [part] * len(found)
    sizes = [value(argument).shape[axis] for argument in found]
    if not isinstance(part.at, int) or not part.place.plain or not all(isinstance(n, int) for n in sizes):
        return None
    parts, start = list[Any](), 0
    for size in map(int, sizes):
        mine = start <= part.at < start + size
        parts.append(
            (replace(part, steps=size, at=part.at - start) if size > 1 else None) if mine else NOTHING
        )
        start += size
    return parts


def _stack(node: fx.Node, part: Part) -> PartsRead | None:
    axis = _from_right(_given(node, 1, 0), value(node).ndim)
    found = arguments(node)
    if part.place.axis == axis:
        if not isinstance(part.at, int):
            return None
        return [None if index == part.at else NOTHING for index in range(len(found))]
    moved = _moved(part, lambda place: _without(place, axis))
    return None if moved is None else [moved] * len(found)


def _without(place: Place, axis: int) -> Place | None:
    """The place once `axis` is no more."""
    if place.axis == axis:
        return None
    return place if place.axis > axis else replace(place, axis=place.axis + 1)


def _with(place: Place, axis: int) -> Place:
    """The place once `axis` is new."""
    return place if place.axis > axis else replace(place, axis=place.axis - 1)


def _select(node: fx.Node, part: Part) -> PartsRead | None:
    axis = _from_right(node.args[1], value(arguments(node)[0]).ndim)
    return _first(node, _moved(part, lambda place: _with(place, axis)))


def _unbind(node: fx.Node, part: Part) -> PartsRead | None:
    dim = _given(node, 1, 0)
    axis = _from_right(dim, value(arguments(node)[0]).ndim)
    return _first(node, _moved(part, lambda place: _with(place, axis)))


def _split(node: fx.Node, part: Part) -> PartsRead | None:
    dim = _given(node, 2, 0)
    axis = _from_right(dim, value(arguments(node)[0]).ndim)
    return _first(node, part) if axis != part.place.axis else None


def _slice(node: fx.Node, part: Part) -> PartsRead | None:
    """Another axis is cut, or the position counts from where this one is."""
    source = value(arguments(node)[0])
    dim, start, stride = _given(node, 1, 0), _given(node, 2, None), _given(node, 4, 1)
    axis = _from_right(dim, source.ndim)
    if axis != part.place.axis:
        return _first(node, part)
    steps, start = source.shape[axis], 0 if start is None else start
    if not isinstance(steps, int) or not isinstance(start, int) or not isinstance(part.at, int):
        return None
    if stride != 1 or not part.place.plain:
        return None
    start = max(start + steps, 0) if start < 0 else start
    return _first(node, replace(part, steps=steps, at=part.at + start))


def _given(node: fx.Node, place: int, otherwise: Any) -> Any:
    return node.args[place] if len(node.args) > place else otherwise


def _listed(dims: Any) -> Sequence[int]:
    return dims if isinstance(dims, (list, tuple)) else [dims]


def _from_right(dim: Any, rank: int) -> int:
    return int(dim) % rank - rank


MOVES = frozenset(
    [
        *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int),
        *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default),
        *(aten.transpose.int, aten.permute.default, aten.t.default),
        *(aten.expand.default, aten.select.int, aten.slice.Tensor),
        *(aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default),
        operator.getitem,
    ]
)
"""Operators that compute nothing, and so are worth nothing to spare."""

_RULES: dict[Any, Callable[[fx.Node, Part], PartsRead | None]] = {
    **dict.fromkeys(
        (aten.masked_fill.Tensor, aten.where.Scalar, aten.where.ScalarSelf, aten.where.ScalarOther), _aligned
    ),
    **dict.fromkeys((aten.__and__.Tensor, aten.__or__.Tensor, aten.hardswish.default), _aligned),
    **dict.fromkeys(
        (aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.log_sigmoid.default), _kept
    ),
    **dict.fromkeys((aten.zeros_like.default, aten.ones_like.default, aten.full_like.default), _kept),
    operator.getitem: _kept,
    aten.dropout.default: _kept,
    aten.contiguous.default: _kept,
    aten.linear.default: _linear,
    aten.prelu.default: _prelu,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _layer_norm,
    **dict.fromkeys((aten.softmax.int, aten._softmax.default, aten.log_softmax.int), _along),
    **dict.fromkeys((aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default), _reduced(1)),
    aten.linalg_vector_norm.default: _reduced(2),
    aten.embedding.default: _embedding,
    **dict.fromkeys((aten.matmul.default, aten.bmm.default, aten.mm.default), _matmul),
    **dict.fromkeys((aten.baddbmm.default, aten.addmm.default), _matmul),
    aten.scaled_dot_product_attention.default: _attention,
    **dict.fromkeys(
        (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int), _flat
    ),
    **dict.fromkeys((aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims), _flat),
    aten.unsqueeze.default: _flat,
    **dict.fromkeys((aten.transpose.int, aten.permute.default, aten.t.default), _transposed),
    **dict.fromkeys((aten.expand.default, aten.expand_as.default), _expand),
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.select.int: _select,
    aten.unbind.int: _unbind,
    **dict.fromkeys((aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default), _split),
    aten.slice.Tensor: _slice,
}
