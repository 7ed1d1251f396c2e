"""Which dimension of a tensor counts rows, and which operators act on each row by itself.

Read off the sizes of a captured graph, in which the number of rows is a symbol n and a dimension may hold k
entries of each row, one row after the other: k n.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ..graph import is_random, operator_name
from ..inputs import Feature

__all__ = ["LOOKS", "RESHAPES", "Rows", "may_cross"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


RESHAPES = _names("view _unsafe_view reshape flatten unflatten squeeze unsqueeze")
# What only looks at a tensor is done again behind where it crosses to others, if what it looks at is no larger: a vector
# spread over the steps of a history crosses once.
LOOKS = RESHAPES | {"expand", "expand_as", "transpose", "permute", "t", "alias", "detach"}
_FILLS = _names("zeros ones full new_zeros new_ones new_full zeros_like ones_like")
# Operators to which the number of rows is a size; to any other it is a number that the answer depends on.
_SIZED = RESHAPES | _FILLS | {"expand", "repeat", "slice"}
# Elementwise, though not all of them are tagged so.
_POINTWISE = _names(
    "where masked_fill prelu _prelu_kernel hardswish log_sigmoid floor_divide dropout to _to_copy type_as "
    "__and__ __or__ alias detach clone contiguous zeros_like ones_like"
)
# These act along dimensions that are gone, or fixed, afterwards: where rows are counted as before, each row was
# left to itself.
_REDUCING = _names(
    "expand expand_as repeat transpose permute t select slice cat concat stack split split_with_sizes chunk unbind getitem "
    "linear matmul mm bmm addmm baddbmm one_hot sum mean prod amax amin any all norm linalg_vector_norm var std "
    "logsumexp argmax argmin"
)
# These keep the size of the dimension `dim` that they act along.
_ALONG = _names("softmax _softmax log_softmax _log_softmax cumsum cumprod sort argsort topk gather max min")
# Kernels over a batch, which comes first.
_BATCHED = _names(
    "conv1d conv2d max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d group_norm "
    "batch_norm"
)
# One argument says what to take of the other: they may not both have rows.
_PICKING = _names("embedding lookup_int8 lookup_int4 index_select index bucketize")


class Rows:
    """The number of rows as the sizes of a graph write it."""

    def __init__(self, inputs: Sequence[fx.Node], features: Sequence[Feature]) -> None:
        sizes = (
            node.meta["val"].shape[feature.axis or 0]
            for node, feature in zip(inputs, features, strict=True)
            if feature.role == "rows"
        )
        self._count = next((size.node.expr for size in sizes if isinstance(size, torch.SymInt)), None)

    def is_count(self, value: Any) -> bool:
        """Whether a size is the number of rows."""
        return isinstance(value, torch.SymInt) and bool(value.node.expr == self._count)

    def counted(self, node: fx.Node) -> bool:
        """Whether one dimension is the number of rows and all others are fixed."""
        place = self._place(node.meta.get("val"))
        return place is not None and place[1] == 1

    def axis(self, node: fx.Node) -> int:
        """The dimension that counts rows, of a node that has one."""
        place = self._place(node.meta["val"])
        assert place is not None
        return place[0]

    def width(self, node: fx.Node) -> int:
        """How many bytes a row of the node takes."""
        found: Tensor = node.meta["val"]
        axis = self.axis(node)
        return math.prod(n for k, n in enumerate(found.shape) if k != axis) * found.element_size()

    def acts_by_row(self, node: fx.Node, sizes: Collection[fx.Node] = ()) -> bool:
        """Whether each row of a call's result depends on the same row of its arguments alone.

        Judged by its operator and the shapes: one that is not known is taken to mix rows. `sizes` are the arguments
        that come from the number of rows alone.
        """
        name, found = operator_name(node), node.meta.get("val")
        held = [arg for arg in node.all_input_nodes if self._place(arg.meta.get("val")) is not None]
        place = self._place(found)
        if place is None or is_random(node) or not all(_is_size(arg) or _equal_rows(arg) for arg in sizes):
            return False
        if any(_is_size(arg) for arg in sizes) and (name not in _SIZED or not _sizes_only(node, name)):
            return False
        if name in RESHAPES:
            return len(held) == 1 and self._keeps_order(held[0], node)
        same = all(self._place(arg.meta["val"])[1] == place[1] for arg in held)  # type: ignore[index]  # an argument of a node is of any type
        return same and self._leaves_rows(node, name, held, place[0])

    def _leaves_rows(self, node: fx.Node, name: str, held: Sequence[fx.Node], axis: int) -> bool:
        target = node.target
        if name in _REDUCING or name in _POINTWISE:
            return True
        if isinstance(target, OpOverload) and torch.Tag.pointwise in target.tags:
            return True
        if name in _PICKING:
            return len(held) == 1
        if name == "layer_norm":
            normalised: Any = node.args[1]
            return bool(axis < node.meta["val"].dim() - len(normalised))
        if name == "scaled_dot_product_attention":
            return node.args[0] in held and all(self.axis(arg) < arg.meta["val"].ndim - 2 for arg in held)
        if name in _BATCHED:
            first = held == [node.args[0]] and axis == self.axis(held[0]) == 0
            return first and _argument(node, "training") in (None, False)
        if name in _ALONG:
            dim = _argument(node, "dim")
            return isinstance(dim, int) and all(dim % arg.meta["val"].ndim != self.axis(arg) for arg in held)
        return False

    def _keeps_order(self, source: fx.Node, node: fx.Node) -> bool:
        """Whether a change of shape leaves each row's entries together, as many in front of them as before."""
        if operator_name(node) == "squeeze":
            dims = _argument(node, "dim")
            ndim, axis = source.meta["val"].ndim, self.axis(source)
            # A single row must not be taken for a dimension to drop.
            return dims is not None and all(
                d % ndim != axis for d in (dims if isinstance(dims, (list, tuple)) else [dims])
            )
        before, after = (math.prod(n.meta["val"].shape[: self.axis(n)]) for n in (source, node))
        return bool(before == after)

    def _place(self, value: Any) -> tuple[int, int] | None:
        """The dimension that counts rows and how many entries of each it holds, the same in every part of a list."""
        if isinstance(value, (tuple, list)):
            places = {self._place(part) for part in value}
            return places.pop() if len(places) == 1 else None
        if not isinstance(value, Tensor) or self._count is None:
            return None
        free = [axis for axis, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
        if len(free) != 1:
            return None
        times = value.shape[free[0]].node.expr / self._count  # type: ignore[attr-defined]  # a symbolic size has a node
        return (free[0], int(times)) if times.is_Integer else None


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt)


def _equal_rows(node: fx.Node) -> bool:
    """Whether a tensor made from the number of rows holds the same in each."""
    name = operator_name(node)
    if name == "expand":
        return not any(isinstance(n, torch.SymInt) for n in node.args[0].meta["val"].shape)  # type: ignore[union-attr]  # an argument of a node is of any type
    return name in _FILLS and _sizes_only(node, name)


def _sizes_only(node: fx.Node, name: str) -> bool:
    """Whether numbers of rows among the arguments are sizes, not the number to fill with."""
    return name not in _FILLS or not any(isinstance(arg, fx.Node) and _is_size(arg) for arg in node.args)


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of a call by its name in the schema, its default where it is not given."""
    if not isinstance(node.target, OpOverload):
        return None
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.name == name:
            given = node.args[place] if place < len(node.args) else argument.default_value
            return node.kwargs.get(name, given)
    return None


def may_cross(node: fx.Node, side: object, sides: Mapping[fx.Node, object], rows: Rows) -> bool:
    """Whether a node of a side may be handed over row by row, and is better handed over than what it looks at: that is of the
    other side, or wider.
    """
    if not rows.counted(node):
        return False
    source = node.args[0]
    if operator_name(node) not in LOOKS or not isinstance(source, fx.Node):
        return True
    same = sides[source] is side and rows.counted(source)
    return not same or rows.width(source) > rows.width(node)
