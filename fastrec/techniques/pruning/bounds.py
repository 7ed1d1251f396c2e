"""Between what ends the values of a graph lie, whatever it is asked: intervals, one for each column of the last axis.

    rows of a table T (V, d)      [min_v T, max_v T]               ids may be any
    W x + b                       b + W+ [l, h] + W- [h, l]        W+ and W- its positive and negative parts
    a rising f                    [f(l), f(h)]
    joined, moved, added, multiplied, averaged by interval arithmetic; of anything else, and of inputs that nothing is known of,
    [-inf, inf]

Ends are computed in float64 and moved apart by what float32 may be off, so that what a model computes lies between them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import constant, is_call, value
from ..projection.axes import RESHAPES, SUMS, followed, place, reshaped
from ..quantization.layers import bias_of

__all__ = ["Interval", "intervals"]

aten = torch.ops.aten
_OFF = 1e-5  # what float32 may be off, relative to the size of what is added up
_RISING = (
    aten.sigmoid.default, aten.tanh.default, aten.elu.default, aten.selu.default, aten.exp.default, aten.softplus.default,
    aten.hardsigmoid.default, aten.log1p.default,
)  # fmt: skip
_CUTTING = (aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default)
_SAME = (aten.dropout.default, aten.to.dtype, aten.alias.default, aten.detach.default)


@dataclass(frozen=True)
class Interval:
    """The least and the largest that a column may be, (C,) each, or (1,) for all columns."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, low: float, high: float) -> Interval:
        """One interval for all columns."""
        return cls(torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64))

    @property
    def fixed(self) -> Tensor:
        """Which columns are one number, always."""
        return (self.low == self.high) & self.low.isfinite()

    def whole(self) -> Interval:
        """One interval around those of all columns."""
        return Interval(self.low.min()[None], self.high.max()[None])

    def wider(self, size: Tensor) -> Interval:
        """Its ends apart by what float32 is off on numbers of this size."""
        return Interval(self.low - _OFF * size, self.high + _OFF * size)

    def across(self, width: int) -> Interval:
        """One for each of so many columns."""
        return Interval(self.low.expand(width), self.high.expand(width)) if len(self.low) == 1 else self


_ANY = Interval.of(-torch.inf, torch.inf)


def intervals(gm: fx.GraphModule, ranges: Mapping[str, tuple[float, float]]) -> dict[fx.Node, Interval]:
    """The intervals of all values that are float tensors; `ranges` gives those of inputs, by the name of their node."""
    found: dict[fx.Node, Interval] = {}
    for node in gm.graph.nodes:
        held = node.meta.get("val")
        if isinstance(held, Tensor) and held.is_floating_point() and held.ndim:
            made = _interval(gm, node, found, ranges)
            width = held.shape[-1]
            clean = not bool(made.low.isnan().any() or made.high.isnan().any())
            found[node] = made if clean and len(made.low) in (1, width) else _ANY
    return found


def _interval(
    gm: fx.GraphModule,
    node: fx.Node,
    found: Mapping[fx.Node, Interval],
    ranges: Mapping[str, tuple[float, float]],
) -> Interval:
    if node.op == "placeholder":
        return Interval.of(*ranges[node.name]) if node.name in ranges else _ANY
    tensor = constant(gm, node)
    if tensor is not None:
        flat = tensor.reshape(-1, tensor.shape[-1])
        return Interval(flat.amin(0).double(), flat.amax(0).double()) if len(flat) else _ANY
    if node.op != "call_function":
        return _ANY
    first: Any = node.args[0] if node.args else None
    if is_call(node, aten.embedding.default, aten.index_select.default):
        at_rows = is_call(node, aten.embedding.default) or node.args[1] == 0
        return found.get(first, _ANY) if at_rows and value(first).ndim == 2 else _ANY
    if is_call(node, aten.linear.default):
        return _mapped(gm, node, found)
    if is_call(node, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor):
        return _arithmetic(node, found)
    if is_call(node, aten.cat.default, aten.stack.default):
        return _joined(node, found)
    if is_call(node, aten.batch_norm.default):
        return _normed(gm, node, found)
    if is_call(node, aten.softmax.int, aten._softmax.default):
        return Interval.of(0.0, 1.0)
    x = found.get(first)
    if x is None:
        return _ANY
    if node.target in _SAME:
        return x
    if node.target in _CUTTING or node.target in _RISING:
        return _raised(node, x)
    if is_call(node, aten.neg.default):
        return Interval(-x.high, -x.low)
    return _moved(node, first, x)


def _mapped(gm: fx.GraphModule, node: fx.Node, found: Mapping[fx.Node, Interval]) -> Interval:
    weight, bias = constant(gm, node.args[1]), bias_of(node)
    shift = constant(gm, bias)
    x: Any = node.args[0]
    if weight is None or weight.ndim != 2 or (bias is not None and shift is None) or x not in found:
        return _ANY
    wide, ends = weight.double(), found[x].across(weight.shape[1])
    offset = wide.new_zeros(len(wide)) if shift is None else shift.double()
    up, down = wide.clamp(min=0), wide.clamp(max=0)
    size = _times(wide.abs(), torch.maximum(ends.low.abs(), ends.high.abs())) + offset.abs()
    low = offset + _times(up, ends.low) + _times(down, ends.high)
    high = offset + _times(up, ends.high) + _times(down, ends.low)
    return Interval(low, high).wider(size)


def _times(matrix: Tensor, ends: Tensor) -> Tensor:
    """A matrix by ends that may be infinite: nothing times infinity is nothing."""
    finite = torch.where(ends.isfinite(), ends, torch.zeros_like(ends))
    infinite = torch.where(ends.isfinite(), torch.zeros_like(ends), ends.sign())
    pull = torch.where(matrix == 0, torch.zeros_like(matrix), matrix.sign()) @ infinite.abs()
    sums = (matrix.sign() * infinite).sum(1)
    # Where infinite ends meet, all of one matrix of one sign pull one way.
    return matrix @ finite + torch.where(pull == 0, torch.zeros_like(sums), sums.sign() * torch.inf)


def _arithmetic(node: fx.Node, found: Mapping[fx.Node, Interval]) -> Interval:
    a, b = (_operand(arg, found) for arg in node.args[:2])
    if a is None or b is None or node.kwargs or len(node.args) > 2:
        return _ANY
    if is_call(node, aten.add.Tensor):
        made = Interval(a.low + b.low, a.high + b.high)
    elif is_call(node, aten.sub.Tensor):
        made = Interval(a.low - b.high, a.high - b.low)
    else:
        if is_call(node, aten.div.Tensor):
            if bool(((b.low <= 0) & (b.high >= 0)).any()):
                return _ANY
            b = Interval(1 / b.high, 1 / b.low)
        ends = torch.stack(
            torch.broadcast_tensors(a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        )
        made = Interval(ends.amin(0), ends.amax(0))
    if bool(made.fixed.all()):
        return made
    return made.wider(torch.maximum(made.low.abs(), made.high.abs()))


def _operand(arg: Any, found: Mapping[fx.Node, Interval]) -> Interval | None:
    if isinstance(arg, (int, float)):
        return Interval.of(float(arg), float(arg))
    return found.get(arg) if isinstance(arg, fx.Node) else None


def _joined(node: fx.Node, found: Mapping[fx.Node, Interval]) -> Interval:
    """Side by side along the last axis, or around all of them along another."""
    given: Any = node.args[0]
    dims = value(node).ndim
    dim = place(node.args[1] if len(node.args) > 1 else 0, dims)
    parts = [found.get(source, _ANY) for source in given]
    if dim == dims - 1 and is_call(node, aten.cat.default):
        widths = [value(source).shape[-1] for source in given]
        if not all(isinstance(width, int) for width in widths):
            return _ANY
        parts = [part.across(width) for part, width in zip(parts, widths, strict=True)]
        return Interval(torch.cat([part.low for part in parts]), torch.cat([part.high for part in parts]))
    if dim == dims - 1:
        parts = [part.whole() for part in parts]
    low = torch.stack(torch.broadcast_tensors(*(part.low for part in parts))).amin(0)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    high = torch.stack(torch.broadcast_tensors(*(part.high for part in parts))).amax(0)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return Interval(low, high)


def _normed(gm: fx.GraphModule, node: fx.Node, found: Mapping[fx.Node, Interval]) -> Interval:
    """Batch norm by its running statistics, of rows (N, C)."""
    x, weight, bias, mean, variance = (node.args[k] for k in range(5))
    held = [None if arg is None else constant(gm, arg) for arg in (weight, bias, mean, variance)]
    ends = found.get(x)  # type: ignore[arg-type]  # an argument of a node is of any type
    if ends is None or value(node).ndim != 2 or held[2] is None or held[3] is None or node.args[5]:
        return _ANY
    factor = (held[3].double() + float(node.args[7])).rsqrt()  # type: ignore[arg-type]  # an argument of a node is of any type
    factor = factor if held[0] is None else factor * held[0].double()
    shift = -held[2].double() * factor
    shift = shift if held[1] is None else shift + held[1].double()
    a, b = ends.low * factor, ends.high * factor
    made = Interval(torch.minimum(a, b) + shift, torch.maximum(a, b) + shift)
    return made.wider(torch.maximum(a.abs(), b.abs()) + shift.abs())


def _raised(node: fx.Node, x: Interval) -> Interval:
    """What does not fall, at both ends."""
    if any(isinstance(arg, fx.Node) for arg in node.args[1:]) or any(
        isinstance(arg, fx.Node) for arg in node.kwargs.values()
    ):
        return _ANY
    if is_call(node, aten.elu.default) and any(isinstance(a, (int, float)) and a < 0 for a in node.args[1:]):
        return _ANY
    target: Any = node.target
    low, high = (target(end, *node.args[1:], **node.kwargs) for end in (x.low, x.high))
    made = Interval(low, high)
    if node.target in _CUTTING:
        # The ends of a clamp are float32 where it is computed.
        return Interval(low.float().double(), high.float().double())
    return made.wider(torch.maximum(low.abs(), high.abs()))


def _moved(node: fx.Node, source: fx.Node, x: Interval) -> Interval:
    """Elements in other places: columns that stay columns keep their ends, others those around all of them."""
    shape, last = value(source).shape, value(source).ndim - 1
    if node.target is operator.getitem:
        return _ANY
    if node.target in RESHAPES:
        moved = reshaped(shape, value(node).shape, last)
        stays = moved is not None and moved[0] == value(node).ndim - 1 and moved[1] >= len(x.low) > 1
        if stays and moved is not None:
            return Interval(*(end.repeat(moved[1] // len(x.low)) for end in (x.low, x.high)))
        return x.whole()
    if is_call(node, aten.slice.Tensor, aten.select.int):
        dim = place(node.args[1] if len(node.args) > 1 else 0, last + 1)
        if dim == last:
            return x.whole()
        return x
    found = followed(node, shape, last)
    if found is None:
        return _ANY
    times = 1.0
    if is_call(node, *SUMS[:1]):
        dims: Any = node.args[1]
        sizes = [shape[place(dim, last + 1)] for dim in dims]
        if not all(isinstance(size, int) for size in sizes):
            return _ANY
        for size in sizes:
            times *= size
    if is_call(node, aten.masked_fill.Scalar):
        x = Interval(x.low.clamp(max=0.0), x.high.clamp(min=0.0))
    if is_call(node, aten.neg.default):
        x = Interval(-x.high, -x.low)
    axis, _ = found
    made = x if axis == value(node).ndim - 1 else x.whole()
    made = Interval(made.low * times, made.high * times)
    return (
        made
        if times == 1.0 and not is_call(node, *SUMS)
        else made.wider(torch.maximum(made.low.abs(), made.high.abs()))
    )
