"""Events of a history written as fewer: means of segments of the older ones, and the newest as they are.

    z_j  =  sum_t S_jt a_t x_t / w_j,    w_j = sum_t S_jt a_t            S (m, L) cuts L = T - r positions into m segments

a_t is 1 at real events and 0 at padding, and 1 throughout a segment of padding alone, which the model's own mask then leaves
out as before. Sums of events, each counted w times, are what they were: sum_j w_j z_j = sum_t a_t x_t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, emit, operator_name, value
from ..fusion.positions import Part, arguments
from ..fusion.sizes import Sizes, shape_of
from .masks import Mask
from .stretches import Stretch

__all__ = ["Segments", "segments_of"]

aten = torch.ops.aten
_SIZED = frozenset(("view", "reshape", "flatten", "unflatten", "expand", "expand_as", "squeeze"))


def segments_of(length: int, count: int) -> Tensor:
    """S (count, length): which positions make each segment; sizes differ by one at most.

    Example:
        >>> segments_of(5, 2).int().tolist()
        [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]]
    """
    parts = torch.arange(length).tensor_split(count)
    return torch.stack([torch.isin(torch.arange(length), part) for part in parts]).float()


class Segments:
    """Writes nodes of T positions at m segments and r newest events; `made` holds what each has become, by its
    place of the positions."""

    def __init__(
        self, gm: fx.GraphModule, steps: int, recent: int, count: int, mask: Mask | None, dtype: torch.dtype
    ) -> None:
        self.made: dict[tuple[fx.Node, Part], fx.Node] = {}
        self.size = recent + count
        self._gm, self._sizes = gm, Sizes(gm)
        self._length, self._recent = steps - recent, recent
        segments = segments_of(self._length, count).to(dtype)
        ones = torch.ones(1, recent, dtype=dtype)
        sizes = segments.sum(1).unsqueeze(0)
        self._segments = add_constant(gm, f"segments_{steps}", segments)
        self._real: fx.Node | None = None
        if mask is None:
            older = add_constant(gm, f"sizes_{steps}", sizes)
            self._weights = add_constant(gm, f"weights_{steps}", torch.cat([sizes, ones], 1))
        else:
            real = self._real_events(mask, dtype)
            counts = emit(gm, aten.linear.default, (real, self._segments))
            self._empty = emit(gm, aten.to.dtype, (emit(gm, aten.eq.Scalar, (counts, 0)), dtype))
            alone = emit(gm, aten.matmul.default, (self._empty, self._segments))
            self._real = emit(gm, aten.add.Tensor, (real, alone))
            older = emit(gm, aten.linear.default, (self._real, self._segments))
            newest = add_constant(gm, f"newest_{steps}", ones)
            shape = [*self._sizes.all(shape_of(older)[:1]), recent]
            newest = emit(gm, aten.expand.default, (newest, shape))
            self._weights = emit(gm, aten.cat.default, ([older, newest], -1))
        self._counts = emit(gm, aten.unsqueeze.default, (older, -1))
        self.added = segments.nbytes

    def write(self, found: Stretch) -> None:
        """Writes all that a sum is computed from, at the graph's insertion point."""
        for node, part in found.leaves.items():
            self._once(node, part, lambda node, _: self._leaf(node))
        for mask in found.masks.values():
            self._once(mask.node, mask.part, partial(self._masked, real=mask.real))
        for node, part in found.inner.items():
            read = {argument: (argument, mine) for argument, mine in found.read[node].items()}
            given = {argument: self.made[key] for argument, key in read.items()}
            if node is found.softmax:
                logarithm = emit(self._gm, aten.log.default, (self._weights,))
                ((score, made),) = given.items()
                given = {score: emit(self._gm, aten.add.Tensor, (made, self._placed(logarithm, node, part)))}
            self._once(node, part, partial(self._compute, given=given))

    def weighted(self, node: fx.Node, part: Part, scale: float) -> fx.Node:
        """What a node has become, each position times the number of events it stands for."""
        weights = self._weights if scale == 1.0 else emit(self._gm, aten.mul.Tensor, (self._weights, scale))
        return emit(self._gm, aten.mul.Tensor, (self.made[node, part], self._placed(weights, node, part)))

    def _once(self, node: fx.Node, part: Part, make: Callable[[fx.Node, Part], fx.Node]) -> None:
        if (node, part) not in self.made:
            self.made[node, part] = make(node, part)

    def _leaf(self, node: fx.Node) -> fx.Node:
        """Vectors (..., T, d) as those of m segments and r events."""
        gm = self._gm
        older = emit(gm, aten.slice.Tensor, (node, -2, 0, self._length))
        newest = emit(gm, aten.slice.Tensor, (node, -2, self._length, self._length + self._recent))
        if self._real is not None:
            older = emit(gm, aten.mul.Tensor, (older, emit(gm, aten.unsqueeze.default, (self._real, -1))))
        total = emit(gm, aten.matmul.default, (self._segments, older))
        mean = emit(gm, aten.div.Tensor, (total, self._counts))
        shape = [*shape_of(mean)[:-2], self._recent, *shape_of(mean)[-1:]]
        if shape_of(newest) != shape:
            newest = emit(gm, aten.expand.default, (newest, self._sizes.all(shape)))
        return emit(gm, aten.cat.default, ([mean, newest], -2))

    def _masked(self, node: fx.Node, part: Part, real: bool) -> fx.Node:
        """A mask of which a segment is padding where all of it is; `real` says whether it is true at real events."""
        gm, flat = self._gm, self._flat(node, part)
        newest = emit(gm, aten.slice.Tensor, (flat, -1, self._length, self._length + self._recent))
        older = emit(gm, aten.eq.Scalar if real else aten.gt.Scalar, (self._empty, 0))
        return self._placed(emit(gm, aten.cat.default, ([older, newest], -1)), node, part)

    def _compute(self, node: fx.Node, part: Part, given: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """A call at the segments and events."""
        if operator_name(node) in _SIZED:
            shape: list[Any] = list(shape_of(node))
            shape[part.place.axis] = self.size
            target = aten.expand if operator_name(node).startswith("expand") else aten.reshape
            source = arguments(node)[0]
            return emit(self._gm, target.default, (given.get(source, source), self._sizes.all(shape)))
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda old: given.get(old, old))
        return emit(self._gm, node.target, args, kwargs)

    def _flat(self, node: fx.Node, part: Part) -> fx.Node:
        """A mask as (rows, T)."""
        axis, rank = part.place.axis, value(node).ndim
        dims = [k for k in range(rank) if k not in (0, rank + axis)]
        return emit(self._gm, aten.squeeze.dims, (node, dims)) if dims else node

    def _placed(self, flat: fx.Node, node: fx.Node, part: Part) -> fx.Node:
        """Numbers (rows, m + r) with the dimensions of a node."""
        axis, rank = part.place.axis, value(node).ndim
        for dim in range(1, rank):
            if dim != rank + axis:
                flat = emit(self._gm, aten.unsqueeze.default, (flat, dim))
        return flat

    def _real_events(self, mask: Mask, dtype: torch.dtype) -> fx.Node:
        flat = emit(self._gm, aten.slice.Tensor, (self._flat(mask.node, mask.part), -1, 0, self._length))
        real = flat if mask.real else emit(self._gm, aten.logical_not.default, (flat,))
        return emit(self._gm, aten.to.dtype, (real, dtype))
