"""Where one axis of a value goes, and whether centred rows stay centred there, as elements are moved and rows are averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from ...graph import is_call, value

__all__ = ["RESHAPES", "SUMS", "Moved", "even_source", "followed", "place", "reshaped"]

aten = torch.ops.aten

RESHAPES = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
)
SUMS = (aten.sum.dim_IntList, aten.mean.dim)

Moved = tuple[int, bool]
"""The axis in the result, and whether a constant row added to all rows comes out as it went in."""


def place(axis: Any, dims: int) -> int:
    """An axis counted from the front."""
    assert isinstance(axis, int)
    return axis % dims if dims else 0


def followed(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    """Where axis `axis` of the first argument, of this shape, is in what `node` gives; None where it does not stay whole.

    Each operator here treats every index of the axis alike, and none depends on its size.
    """
    find = _MOVES.get(node.target)
    return None if find is None else find(node, shape, axis)


def reshaped(before: torch.Size, after: torch.Size, axis: int) -> tuple[int, int] | None:
    """The axis that holds this axis after a reshape, and its size there, k of the old one or a part of it; None where none does.

    Told from the sizes behind it alone, which are numbers: those in front may be free.
    """
    behind, width = before[axis + 1 :], before[axis]
    if not all(isinstance(size, int) for size in (*behind, width)):
        return None
    left, at = math.prod(behind), len(after) - 1
    while at >= 0 and (left > 1 or after[at] == 1):
        size = after[at]
        if not isinstance(size, int) or left % size:
            return None
        left, at = left // size, at - 1
    if at < 0 or not isinstance(after[at], int):
        return None
    found = int(after[at])
    if found == width or (found and width % found == 0):
        return at, found
    # Joined with axes in front of it, whole ones.
    joined, front = width, axis
    while joined < found and front:
        front -= 1
        if not isinstance(before[front], int):
            return None
        joined *= before[front]
    return (at, found) if joined == found else None


def _same(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:  # noqa: ARG001 - one shape of all these
    return axis, True


def _calm(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:  # noqa: ARG001 - every rule is given all three
    return None if bool(node.args[2]) else (axis, True)


def _cast(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:  # noqa: ARG001 - every rule is given all three
    return (axis, True) if value(node).dtype is value(node.args[0]).dtype else None  # type: ignore[arg-type]  # an argument of a node is of any type


def _unsqueezed(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    return axis + (place(node.args[1], len(shape) + 1) <= axis), True


def _squeezed(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    given: Any = node.args[1]
    dims = {place(dim, len(shape)) for dim in (given if isinstance(given, (list, tuple)) else [given])}
    return axis - sum(
        1 for dim in dims if dim < axis and isinstance(shape[dim], int) and shape[dim] == 1
    ), True


def _picked(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    dim = place(node.args[1], len(shape))
    return None if dim == axis else (axis - (dim < axis), True)


def _unbound(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    dim = place(node.args[1] if len(node.args) > 1 else 0, len(shape))
    return None if dim == axis else (axis - (dim < axis), True)


def _cut(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    """A slice of the axis that is all of it has no bounds that a narrower one would break."""
    dim = place(node.args[1] if len(node.args) > 1 else 0, len(shape))
    return None if dim == axis and value(node).shape[axis] != shape[axis] else (axis, True)


def _chosen(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    return None if place(node.args[1], len(shape)) == axis else (axis, True)


def _split(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    dim = place(node.args[2] if len(node.args) > 2 else 0, len(shape))
    return None if dim == axis else (axis, True)


def _indexed(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:  # noqa: ARG001 - every rule is given all three
    indices: Any = node.args[1]
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0][0] == axis:
        return None
    dim, index = given[0]
    if value(index).dtype is torch.bool:
        return None
    return axis + (value(index).ndim - 1) * (dim < axis), True


def _permuted(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    dims: Any = node.args[1]
    return [place(dim, len(shape)) for dim in dims].index(axis), True


def _transposed(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    a, b = (place(dim, len(shape)) for dim in (node.args[1:3] or (0, -1)))
    return {a: b, b: a}.get(axis, axis), True


def _expanded(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    return value(node).ndim - len(shape) + axis, True


def _summed(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    given: Any = node.args[1]
    if not isinstance(given, (list, tuple)) or not given or node.kwargs:
        return None
    dims = {place(dim, len(shape)) for dim in given}
    if axis in dims:
        return None
    keep = len(node.args) > 2 and bool(node.args[2])
    return axis - (0 if keep else sum(dim < axis for dim in dims)), is_call(node, aten.mean.dim)


def _emptied(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:
    mask: Any = node.args[1]
    at = value(mask).ndim - len(shape) + axis
    alike = at < 0 or value(mask).shape[at] == 1
    same = value(node).ndim == len(shape)
    return (axis, False) if node.args[2] == 0 and alike and same else None


def _negated(node: fx.Node, shape: torch.Size, axis: int) -> Moved | None:  # noqa: ARG001 - every rule is given all three
    return axis, False


_MOVES: Mapping[Any, Callable[[fx.Node, torch.Size, int], Moved | None]] = {
    **dict.fromkeys(
        (aten.alias.default, aten.detach.default, aten.clone.default, aten.contiguous.default), _same
    ),
    aten.dropout.default: _calm,
    aten.to.dtype: _cast,
    aten.unsqueeze.default: _unsqueezed,
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims), _squeezed),
    aten.select.int: _picked,
    aten.unbind.int: _unbound,
    aten.slice.Tensor: _cut,
    aten.index_select.default: _chosen,
    **dict.fromkeys(
        (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.split.sizes), _split
    ),
    aten.index.Tensor: _indexed,
    aten.permute.default: _permuted,
    **dict.fromkeys((aten.transpose.int, aten.t.default), _transposed),
    **dict.fromkeys((aten.expand.default, aten.expand_as.default), _expanded),
    **dict.fromkeys(SUMS, _summed),
    aten.masked_fill.Scalar: _emptied,
    aten.neg.default: _negated,
}


def even_source(node: Any, axis: int) -> fx.Node | None:
    """What was repeated along this axis to give a value: of size 1 there, or without the axis. None where nothing was."""
    if not is_call(node, aten.expand.default, aten.expand_as.default):
        return None
    source: Any = node.args[0]
    at = axis - (value(node).ndim - value(source).ndim)
    return source if at < 0 or value(source).shape[at] == 1 else None
