"""How the columns of embedding tables flow through a graph, up to what ends them: the analysis that a change of basis needs.

A value has a *flow* where one of its axes is made of parts, each the columns of a row of some table. Rows of several
tables that are added, laid along another axis or multiplied with each other have one basis: they are one *group*. What
ends a flow

    linear(x, W)                          the map takes the new columns: W P for each part (W is constant)
    matmul(x, y), x y summed, |x|         inner products of rows of one group: kept by any rotation of all of them

and all else that reads the columns one by one (ReLU, layer norm, softmax, a slice of them, the answer) blocks the group,
with its reason. A value that is not looked up and meets rows of a group (the numbers' tower of a DLRM, a user's tower)
is an *entry*: it would be turned by one product where it enters.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ...graph import constant, is_call, value
from ...places import called
from ..fusion.sizes import shape_of
from ..reads import Table
from .axes import RESHAPES, even_source, followed, place, reshaped
from .groups import Flow, Groups, Leaf, Part

__all__ = ["Flows"]

aten = torch.ops.aten


class Flows(Groups):
    """The flows of the rows of these tables in a graph."""

    def __init__(self, gm: fx.GraphModule, tables: Sequence[Table]) -> None:
        self.gm = gm
        super().__init__()
        rows = {read.node: (table, read.bag) for table in tables for read in table.reads}
        first: dict[int, int] = {}
        for node in gm.graph.nodes:
            if node in rows:
                table, bag = rows[node]
                leaf = self.add(Leaf(node, self._last(node), table.tensor.shape[1], table))
                self.join(leaf, first.setdefault(id(table), leaf))
                if bag:
                    self.bend(self.of[node])
            else:
                self._visit(node)

    def _last(self, lookup: fx.Node) -> int:
        """Gives the rows that a lookup finds their flow; of bags the first of its results. The axis."""
        bag = isinstance(lookup.meta["val"], (tuple, list))
        axis = 1 if bag else value(lookup).ndim - 1
        width = (lookup.meta["val"][0] if bag else value(lookup)).shape[-1]
        self.of[lookup] = Flow(axis, (Part(int(width), len(self.leaves)),))
        return axis

    def _visit(self, node: fx.Node) -> None:
        """The flow of what a node gives, from those of what it reads."""
        read = [source for source in node.all_input_nodes if source in self.of]
        if not read or self._asks_shape(node, read[0]):
            return
        if node.op == "output":
            reason: str | None = "its columns are among the model's answers"
        elif node.target is operator.getitem:
            reason = self._got(node, read[0])
        elif node.target in _READERS:
            reason = _READERS[node.target](self, node)
        elif node.args and node.args[0] is read[0] and len(read) == 1:
            reason = self._moved(node, read[0])
        else:
            reason = "reads its columns one by one"
        if reason:
            for source in read:
                name = called(node)
                self.block(self.of[source], f"{name} {reason}" if name else reason)
            self.of.pop(node, None)

    def _asks_shape(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether a node reads no more than sizes: of another axis, or of all to repeat one number, for the row itself."""
        if is_call(node, aten.sym_size.int):
            return bool(node.args[1] != self.of[source].axis)
        if not is_call(node, aten.expand_as.default) or node.args[0] in self.of:
            return False
        at = self.of[source].axis
        return even_source(node, at) is not None and all(
            is_call(user, aten.mul.Tensor, aten.div.Tensor) and source in user.args for user in node.users
        )

    def _got(self, node: fx.Node, source: fx.Node) -> str | None:
        if is_call(source, *_BAGS) and node.args[1] != 0:
            return "gives more than its bags"
        self.of[node] = self.of[source]
        return None

    def _moved(self, node: fx.Node, source: fx.Node) -> str | None:
        """Through a move, or a sum over other axes; a sum over all of an axis of products ends it."""
        flow, shape = self.of[source], value(source).shape
        if node.target in RESHAPES:
            return self._reshaped(node, source)
        found = followed(node, shape, flow.axis)
        if found is not None:
            axis, even = found
            if not even:
                self.bend(flow)
            self.of[node] = replace(flow, axis=axis)
            return None
        dims: Any = node.args[1] if len(node.args) > 1 else None
        if is_call(node, aten.sum.dim_IntList) and flow.products and not node.kwargs:
            return (
                None
                if flow.axis in {place(dim, len(shape)) for dim in dims}
                else "adds up products otherwise"
            )
        if is_call(node, aten.slice.Tensor) and place(dims, len(shape)) == flow.axis:
            return (
                "cuts its columns: where fusion laid tables side by side in one, ProjectPCA goes before Fuse"
            )
        return "reads its columns one by one"

    def _reshaped(self, node: fx.Node, source: fx.Node) -> str | None:
        flow = self.of[source]
        found = reshaped(value(source).shape, value(node).shape, flow.axis)
        if found is None:
            return "takes its columns apart"
        axis, size = found
        if size >= flow.width:
            self.of[node] = replace(flow, axis=axis, parts=flow.parts * (size // flow.width))
            return None
        if any(part.width != size for part in flow.parts):
            return "takes its columns apart"
        self.join(*(part.leaf for part in flow.parts))
        self.of[node] = replace(flow, axis=axis, parts=flow.parts[:1])
        return None

    def _enter(self, node: fx.Node, source: Any, axis: int, flow: Flow) -> bool:
        """Whether a value that `node` reads may be turned into the basis of a flow, along an axis of its own."""
        if not isinstance(source, fx.Node) or len(flow.parts) != 1 or flow.products or source in self.of:
            return False
        shape = value(source).shape
        if not 0 <= axis < len(shape) or not isinstance(shape[axis], int) or shape[axis] != flow.width:
            return False
        if value(source).dtype is not torch.float32:
            return False
        self.bend(flow)
        self.join(flow.parts[0].leaf, self.add(Leaf(source, axis, flow.width, user=node)))
        return True

    def _linear(self, node: fx.Node) -> str | None:
        x, held = node.args[:2]
        assert isinstance(x, fx.Node)
        flow, weight = self.of.get(x), constant(self.gm, held)
        bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        if (
            flow is None
            or weight is None
            or weight.ndim != 2
            or (isinstance(bias, fx.Node) and bias in self.of)
        ):
            return "has weights that are not constant"
        if flow.axis != value(x).ndim - 1:
            if bias is not None:
                return "adds a bias to each of its columns"
            self.bend(flow)
            self.of[node] = flow
            return None
        if flow.products:
            return "reads products of its columns one by one"
        if weight.dtype is not torch.float32 or not bool(weight.isfinite().all()):
            return "has weights that are not finite float32"
        self.maps.append(node)
        return None

    def _product(self, node: fx.Node) -> str | None:
        """matmul, bmm and mm: an inner product of rows, or sums of rows with weights."""
        a, b = node.args[:2]
        assert isinstance(a, fx.Node) and isinstance(b, fx.Node)
        left, right = self.of.get(a), self.of.get(b)
        la, lb, out = value(a).ndim - 1, value(b).ndim - 1, value(node).ndim
        if la < 1 or lb < 1:
            return "multiplies its rows by a vector"
        if any(flow is not None and flow.products for flow in (left, right)):
            return "reads products of its columns one by one"
        inner_left = left is not None and left.axis == la
        inner_right = right is not None and right.axis == lb - 1
        if left and right:
            if not (inner_left and inner_right and self.pair(left, right)):
                return "multiplies its rows otherwise than by an inner product"
            self.contract(left, right)
        elif (left and inner_left) or (right and inner_right):
            flow = left or right
            assert flow is not None
            if not (self._enter(node, b, lb - 1, flow) if left else self._enter(node, a, la, flow)):
                return "multiplies its columns by a matrix that is not constant"
            self.contract(flow)
        elif (left and left.axis == la - 1) or (right and right.axis == lb):
            flow = left or right
            assert flow is not None
            self.bend(flow)
            self.of[node] = replace(flow, axis=out - 2 if left else out - 1)
        else:
            return "multiplies its rows otherwise than by an inner product"
        return None

    def _times(self, node: fx.Node) -> str | None:
        """A product by elements: of two rows, to be summed, or of a row and one number for all of its columns."""
        a, b = node.args[:2]
        left, right = self._flow(a), self._flow(b)
        if left and right:
            flow = self._aligned(node, a, left)
            if left.products or right.products or flow.axis != self._aligned(node, b, right).axis:
                return "multiplies its columns otherwise than row by row"
            if not self.pair(left, right):
                return "multiplies columns of different tables"
            self.contract(left, right)
            self.of[node] = replace(flow, products=True)
            return None
        one, other = (a, b) if left else (b, a)
        own = left or right
        assert own is not None
        if is_call(node, aten.div.Tensor) and (right or len(node.args) > 2 or node.kwargs):
            return "divides by its columns"
        flow = self._aligned(node, one, own)
        if isinstance(other, fx.Node) and isinstance(other.meta["val"], torch.Tensor):
            at = flow.axis - (value(node).ndim - value(other).ndim)
            repeated = even_source(other, at) is not None and _as_large(one, node)
            if at >= 0 and value(other).shape[at] != 1 and not repeated:
                summed = node.users and all(_sums(user, flow.axis, value(node).ndim) for user in node.users)
                if own.products or not summed or not self._enter(node, other, at, own):
                    return "multiplies each of its columns by a number of its own"
                self.contract(own)
                self.of[node] = replace(flow, products=True)
                return None
        self.bend(own)
        self.of[node] = flow
        return None

    def _plus(self, node: fx.Node) -> str | None:
        """Sums and differences of rows."""
        a, b = node.args[:2]
        left, right = self._flow(a), self._flow(b)
        one, own = (a, left) if left else (b, right)
        assert own is not None
        flow = self._aligned(node, one, own)
        self.bend(flow)
        if left and right:
            if left.products != right.products or flow.axis != self._aligned(node, b, right).axis:
                return "adds its rows to values of another kind"
            if not self.pair(left, right):
                return "adds columns of different tables"
            self.bend(right)
        else:
            other = b if left else a
            dims = (
                value(other).ndim
                if isinstance(other, fx.Node) and isinstance(other.meta["val"], torch.Tensor)
                else 0
            )
            at = flow.axis - (value(node).ndim - dims)
            if at != dims - 1 or not self._enter(node, other, at, own):
                return "adds numbers to its columns"
        self.of[node] = flow
        return None

    def _flow(self, arg: Any) -> Flow | None:
        return self.of.get(arg) if isinstance(arg, fx.Node) else None

    @staticmethod
    def _aligned(node: fx.Node, source: Any, flow: Flow) -> Flow:
        """A flow in a value that others are broadcast against."""
        return replace(flow, axis=flow.axis + value(node).ndim - value(source).ndim)

    def _squared(self, node: fx.Node) -> str | None:
        flow = self._flow(node.args[0])
        if flow is None or flow.products or node.args[1:] not in ((), (2,), (2.0,)):
            return "reads its columns one by one"
        self.contract(flow)
        self.of[node] = replace(flow, products=True)
        return None

    def _norm(self, node: fx.Node) -> str | None:
        flow = self._flow(node.args[0])
        order, dims = (*node.args[1:3], 2, None)[:2] if len(node.args) > 2 else (2, None)
        if flow is None or flow.products or order != 2 or not isinstance(dims, (list, tuple)):
            return "reads its columns one by one"
        if flow.axis not in {place(dim, value(node.args[0]).ndim) for dim in dims}:  # type: ignore[arg-type]  # an argument of a node is of any type
            return "reads its columns one by one"
        self.contract(flow)
        return None

    def _laid(self, node: fx.Node) -> str | None:
        """cat and stack: along another axis, which makes one group of all, or along its own."""
        given: Any = node.args[0]
        stacked = is_call(node, aten.stack.default)
        dim = place(node.args[1] if len(node.args) > 1 else 0, value(node).ndim)
        flows = [self.of.get(source) for source in given]
        known = [flow for flow in flows if flow]
        first = known[0]
        if any((flow.axis, flow.products) != (first.axis, first.products) for flow in known):
            return "lays its columns beside values of another kind"
        if not stacked and dim == first.axis:
            return self._side_by_side(node, given, first)
        if not all(self.pair(first, flow) for flow in known[1:]):
            return "lays columns of different tables over each other"
        for source, flow in zip(given, flows, strict=True):
            if not flow and not self._enter(node, source, first.axis, first):
                return "lays its rows over values of another kind"
        self.of[node] = replace(first, axis=first.axis + (stacked and dim <= first.axis))
        return None

    def _side_by_side(self, node: fx.Node, given: Sequence[fx.Node], first: Flow) -> str | None:
        parts: list[Part] = []
        for source in given:
            flow = self.of.get(source)
            if flow:
                parts += flow.parts
                continue
            width = value(source).shape[first.axis]
            if not isinstance(width, int) or first.products:
                return "lays its columns beside values of another kind"
            parts.append(Part(width, self.add(Leaf(source, first.axis, width, user=node))))
        self.of[node] = replace(first, parts=tuple(parts))
        return None


def _as_large(source: Any, node: fx.Node) -> bool:
    """Whether a value is of the shape of what is made of it."""
    return shape_of(source) == shape_of(node)


def _sums(node: fx.Node, axis: int, dims: int) -> bool:
    """Whether a node sums over this axis."""
    given: Any = node.args[1] if len(node.args) > 1 else None
    summed = is_call(node, aten.sum.dim_IntList) and not node.kwargs and isinstance(given, (list, tuple))
    return summed and axis in {place(dim, dims) for dim in given}


_BAGS = (aten.embedding_bag.default, aten.embedding_bag.padding_idx)

_READERS: Mapping[Any, Callable[[Flows, fx.Node], str | None]] = {
    aten.linear.default: Flows._linear,
    **dict.fromkeys((aten.matmul.default, aten.bmm.default, aten.mm.default), Flows._product),
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar), Flows._times),
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor), Flows._plus),
    **dict.fromkeys((aten.pow.Tensor_Scalar, aten.square.default), Flows._squared),
    aten.linalg_vector_norm.default: Flows._norm,
    **dict.fromkeys((aten.cat.default, aten.stack.default), Flows._laid),
}
