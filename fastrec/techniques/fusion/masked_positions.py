"""Positions of a request that the mask gives weight zero are not computed.

    sum_t w[n, t] k[t]  =  sum_{t in real} w[n, t] k[t]     w = masked_fill(s, m, 0), or softmax_t(masked_fill(s, m, -inf))

or w = where(not m, s, 0), or w = s * (not m), with real = {t : not m[t]}, or the first position where all are masked: the weight there is what it was, 0 or NaN. The
mask m is the request's, one row of T; the scores s (N, ..., T, ...) are each candidate's. Whatever of size T the scores
and the values come from is computed at the real positions alone, traced back to what the request gives:

    f(x)[..., real, ...]  =  f(x[..., real, ...])           f element by element, or acting along other dimensions

Of a history of which half is padding, half of the work is left. What k holds at masked positions is taken to be finite.

When it does not apply: to a graph that writes in place; where something on the way mixes positions, or something else
reads what is computed for each candidate; where no linear layer is applied at each position, as there is little to
spare; to a fill of -1e9 or the like, whose weights are zero only as far as the scores allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...graph import add_constant, ancestors, emit, is_call, is_free, operator_name, value
from ..base import Change
from .picked_positions import POSITION_MOVES, Picks, is_mask, is_tensor, parts_at, places_of, rebuilds
from .positions import Part, Place, arguments
from .purity import writes

__all__ = ["skip_masked"]

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SOFTMAX = (aten.softmax.int, aten._softmax.default)


def skip_masked(gm: fx.GraphModule) -> list[Change]:
    """Computes the real positions alone; edits `gm` in place. Adds a constant of T bits for each mask."""
    if writes(gm):
        return []
    changes: list[Change] = []
    chosen: dict[_Mask, fx.Node] = {}
    for node in list(gm.graph.nodes):
        mask = _mask(node)
        part = _masked(node, mask) if mask is not None else None
        path = _path(node, part, mask.fill == 0) if mask is not None and part is not None else None
        if mask is None or part is None or path is None:
            continue
        region = _Region(gm, path, part, mask.node).found()
        if region is not None:
            if mask not in chosen:
                chosen[mask] = _real(gm, mask)
            _compute(gm, region, path[-1], chosen[mask])
            changes.append(Change("skip masked", node.name, f"of {part.steps} positions only real ones"))
    return changes


@dataclass(frozen=True)
class _Mask:
    """A mask, whether it is true (or not 0) where positions are real, and what masked scores become."""

    node: fx.Node
    real: bool
    fill: float


def _mask(node: fx.Node) -> _Mask | None:
    """The mask of masked scores."""
    if is_call(node, aten.masked_fill.Scalar):
        mask, fill, real = node.args[1], node.args[2], False
    elif is_call(node, aten.where.ScalarOther):
        mask, fill, real = node.args[0], node.args[2], True
    elif is_call(node, aten.mul.Tensor):
        mask, fill, real = next((arg for arg in node.args if is_mask(arg)), None), 0, True
    else:
        return None
    fits = isinstance(mask, fx.Node) and isinstance(fill, (int, float)) and fill in (0, -float("inf"))
    return _Mask(mask, real, fill) if fits else None  # type: ignore[arg-type]  # an argument of a node is of any type


def _masked(fill: fx.Node, given: _Mask) -> Part | None:
    """The positions that the mask of one request masks."""
    mask = given.node
    if is_free(mask):
        return None
    long = [axis for axis in range(-value(mask).ndim, 0) if value(mask).shape[axis] != 1]
    if len(long) != 1 or any(is_free(node) for node in ancestors(mask.all_input_nodes)):
        return None
    return Part(Place(long[0]), int(value(mask).shape[long[0]]), 0) if is_free(fill) else None


def _path(fill: fx.Node, part: Part, zeros: bool) -> list[fx.Node] | None:
    """From the masked scores, as weights, to the sum over all positions, which is all that reads them."""
    node, path = fill, [fill]
    while len(node.users) == 1:
        user = next(iter(node.users))
        path.append(user)
        if zeros and _summed(user, part.steps).get(node) == part:
            return path
        place = next((place for place in _places(user, part) if _given(user, place) == {node: part}), None)
        others = [place for place in _places(user, part) if _given(user, place).get(node) == part]
        if is_call(user, *_SOFTMAX) and not zeros and _dim(user) == part.place.axis:
            zeros = True
        elif operator_name(user) in POSITION_MOVES and place is not None:
            part = place
        elif is_call(user, aten.mul.Tensor) and zeros and others:
            part = others[0]
        else:
            return None
        node = user
    return None


def _places(node: fx.Node, part: Part) -> Iterator[Part]:
    """The dimensions of the node that may count these positions."""
    found = node.meta.get("val")
    if isinstance(found, Tensor):
        for axis in range(-found.ndim, 0):
            if isinstance(found.shape[axis], int) and found.shape[axis] == part.steps:
                yield Part(Place(axis), part.steps, 0)


def _given(node: fx.Node, part: Part) -> dict[fx.Node, Part]:
    """What has these positions among the arguments; nothing where that is not known."""
    return parts_at(node, part) or {}


def _dim(softmax: fx.Node) -> int:
    rank = value(softmax).ndim
    dim = softmax.args[1]
    assert isinstance(dim, int)
    return dim % rank - rank


def _summed(node: fx.Node, steps: int) -> dict[fx.Node, Part]:
    """The arguments whose common dimension the node sums over, and that dimension."""
    axes: list[int]
    if is_call(node, aten.sum.dim_IntList):
        rank, dims = value(arguments(node)[0]).ndim, node.args[1]
        if not isinstance(dims, (list, tuple)):
            return {}
        axes = [int(dim) % rank - rank for dim in dims if isinstance(dim, int)]
        axes = [axis for axis in axes if value(arguments(node)[0]).shape[axis] == steps][:1]
    elif is_call(node, *_PRODUCTS) and len(set(node.args)) == 2:
        axes = [-1, -min(2, value(arguments(node)[1]).ndim)]
    else:
        return {}
    return {
        argument: Part(Place(axis), steps, 0)
        for argument, axis in zip(arguments(node), axes, strict=False)
        if value(argument).shape[axis] == steps
    }


@dataclass(frozen=True)
class _Found:
    """What is computed at the real positions, in order, of which arguments, and what they are picked from."""

    inner: dict[fx.Node, Part]
    read: dict[fx.Node, dict[fx.Node, Part]]
    leaves: dict[fx.Node, Part]


class _Region:
    """Looks for what has the positions of a mask, from the sum over them back to the request."""

    def __init__(self, gm: fx.GraphModule, path: list[fx.Node], part: Part, mask: fx.Node) -> None:
        self._gm, self._path, self._part = gm, path, part
        self._mask = {mask, *ancestors(mask.all_input_nodes)}

    def found(self) -> _Found | None:
        """The region; None where it is not closed, or not worth it."""
        whole: set[fx.Node] = set()
        while True:
            region = self._collect(whole)
            if region is None:
                return None
            inside = region.inner.keys() | self._mask | {self._path[-1]}
            read = {node for node in region.inner if any(user not in inside for user in node.users)}
            if any(is_free(node) for node in read):
                return None
            if not read:
                break
            # What others read of the request is there already, and is picked from.
            whole |= read
        works = any(is_call(node, aten.linear.default) and is_free(node) for node in region.inner)
        return region if works and self._path[0] in region.inner else None

    def _collect(self, whole: set[fx.Node]) -> _Found | None:
        parts: dict[fx.Node, Part] = {}
        leaves: dict[fx.Node, Part] = {}
        read: dict[fx.Node, dict[fx.Node, Part]] = {}
        left = list(_summed(self._path[-1], self._part.steps).items())
        while left:
            node, part = left.pop()
            known = parts.get(node) or leaves.get(node)
            if known is not None:
                if known != part:
                    return None
                continue
            given = self._read(node, part) if node.op == "call_function" and node not in whole else None
            if given is not None and rebuilds(node) and (given or is_call(node, aten.expand.default)):
                parts[node], read[node] = part, given
                left += given.items()
            elif is_free(node):
                return None
            else:
                leaves[node] = part
        return _Found({node: parts[node] for node in self._gm.graph.nodes if node in parts}, read, leaves)

    def _read(self, node: fx.Node, part: Part) -> dict[fx.Node, Part] | None:
        if node in self._path and is_call(node, *_SOFTMAX) and _dim(node) == part.place.axis:
            # The weights of masked positions are zero, and no part of what the others are divided by.
            return {arguments(node)[0]: part}
        given = parts_at(node, part)
        return given if given is not None and all(map(is_tensor, given)) else None


def _real(gm: fx.GraphModule, mask: _Mask) -> fx.Node:
    """The places of the real positions (L,), L a new free size; the first where there is none."""
    first = torch.arange(value(mask.node).numel()) == 0
    with gm.graph.inserting_before(mask.node.next):
        start = add_constant(gm, f"{mask.node.name}_first", first)
        flat = emit(gm, aten.reshape.default, (mask.node, [-1]))
        masked = emit(gm, aten.logical_not.default, (flat,))
        flat, masked = (flat, masked) if mask.real else (masked, flat)
        none = emit(gm, aten.logical_and.default, (start, emit(gm, aten.all.default, (masked,))))
        real = emit(gm, aten.logical_or.default, (flat, none))
        return places_of(gm, real)


def _compute(gm: fx.GraphModule, region: _Found, end: fx.Node, real: fx.Node) -> None:
    """Writes the region at the real positions, and lets the sum read that."""
    picks = Picks(gm, real)
    with gm.graph.inserting_before(end):
        for node, part in region.inner.items():
            picks.compute(node, part, region.read[node])
        parts = {**region.inner, **region.leaves}
        given = {node: picks.at(node, parts[node]) for node in end.all_input_nodes if node in parts}
    for argument, made in given.items():
        end.replace_input_with(argument, made)
