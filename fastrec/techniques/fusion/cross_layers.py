"""Cross layers of a request and a candidate, all of them, without a D x D product for each candidate (A6).

    x_(l+1)  =  x_0 * (W_l x_l + b_l) + x_l          x_0 = [u | i]: u (1, D_u) the request's, i (N, D_i) the candidate's

The request's block is affine in the candidate's of all layers before, with matrices that are the request's alone:

    x_l^U      =  u * (a_l + sum_(j<l) A_(l,j) x_j^I)
    a_(l+1)    =  a_l + W_l^UU (u * a_l) + b_l^U                                   a_0 = 1
    A_(l+1,j)  =  A_(l,j) + W_l^UU (u * A_(l,j)),    A_(l+1,l)  =  W_l^UI          (D_u, D_i)
    x_(l+1)^I  =  x_l^I + i * (W_l^IU (u * a_l) + b_l^I + sum_(j<l) W_l^IU (u * A_(l,j)) x_j^I + W_l^II x_l^I)

A linear map of the last layer reads the candidate's blocks in the same way; to few outputs, A_(L,j) of the last layer
is not formed: w (u * A_(L,j)) = (g + (g W^UU) * u) A_(L-1,j) with g = w * u. Where anything else reads it, it is made.

Left for each candidate are D_i^2 L (L + 1) / 2 multiply-adds in place of D D_i + D^2 (L - 1); once come some
D_u^2 D_i (L - 1)(L - 2) / 2 + D_i^2 D_u L (L - 1) / 2. The maps may be of low rank, two in a row. Weights are combined in
float64. When it does not apply: to gates or activations between; to layers that others read; where it takes more than
three fifths of the multiply-adds at 100 candidates, as with a wide candidate; to a graph that writes in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit, is_call, value
from ..base import Change
from .join import Join
from .joins import Joins
from .purity import writes
from .terms import joined, opened, weights

__all__ = ["split_cross_layers"]

aten = torch.ops.aten
_CANDIDATES = 100
_WORTH = 0.6
_CONTRACTED = 4


@dataclass(frozen=True)
class _Layer:
    """`out = x0 * (weight x + bias) + x`, the multiply-adds of its map as written, and what reads x for it."""

    x0: fx.Node
    x: fx.Node
    out: fx.Node
    weight: Tensor
    bias: Tensor
    rank: int | None
    readers: frozenset[fx.Node]

    def multiply_adds(self, left: int) -> int:
        """Those for each candidate, of whose x so much differs from candidate to candidate."""
        width = len(self.bias)
        return width * left if self.rank is None else self.rank * (left + width)


def split_cross_layers(gm: fx.GraphModule) -> list[Change]:
    """Splits whole cross networks; edits `gm` in place. Adds the blocks of their weights."""
    if writes(gm):
        return []
    joins = Joins(gm, products=False)
    layers = [layer for node in gm.graph.nodes for layer in _layers(gm, node)]
    follows = {(layer.x0, layer.x): layer for layer in layers}
    changes = []
    for first in layers:
        if first.x is not first.x0 or (join := joins.read(first.x0)) is None:
            continue
        if (join.axis, join.rows) != (1, 0) or not join.plain:
            continue
        chain = [first]
        while (after := follows.get((first.x0, chain[-1].out))) is not None:
            if set(chain[-1].out.users) != after.readers:
                break
            chain.append(after)
        if (change := _Network(gm, join, chain).split()) is not None:
            changes.append(change)
    return changes


def _layers(gm: fx.GraphModule, out: fx.Node) -> list[_Layer]:
    if not is_call(out, aten.add.Tensor) or out.kwargs or len(out.args) != 2 or value(out).ndim != 2:
        return []
    found = []
    for product, x in (out.args, out.args[::-1]):
        if (
            not isinstance(product, fx.Node)
            or not is_call(product, aten.mul.Tensor)
            or len(product.users) != 1
        ):
            continue
        for x0, mapped in (product.args, product.args[::-1]):
            if not isinstance(x0, fx.Node) or not isinstance(x, fx.Node) or not isinstance(mapped, fx.Node):
                continue
            if len({str(value(node).shape) for node in (x0, x, mapped, out)}) != 1:
                continue
            if (read := _map(gm, mapped, x)) is not None:
                weight, bias, rank, reader = read
                found.append(_Layer(x0, x, out, weight, bias, rank, frozenset((reader, out))))
    return found


def _map(gm: fx.GraphModule, node: fx.Node, x: fx.Node) -> tuple[Tensor, Tensor, int | None, fx.Node] | None:
    """The affine map of x that a node is, in one step or two, its rank if two, and the step that reads x."""
    bias: Tensor | None = None
    if (
        is_call(node, aten.add.Tensor)
        and len(node.users) == 1
        and (held := constant(gm, node.args[1])) is not None
    ):
        inner = node.args[0]
        if held.ndim != 1 or not isinstance(inner, fx.Node):
            return None
        node, bias = inner, held.double()
    if not is_call(node, aten.linear.default) or len(node.users) != 1 or (outer := weights(gm, node)) is None:
        return None
    weight = outer[0].double()
    offset = weight.new_zeros(len(weight)) if outer[1] is None else outer[1].double()
    offset = offset if bias is None else offset + bias
    source = node.args[0]
    if source is x:
        return weight, offset, None, node
    if not isinstance(source, fx.Node) or not is_call(source, aten.linear.default) or len(source.users) != 1:
        return None
    inside = weights(gm, source)
    if inside is None or source.args[0] is not x:
        return None
    offset = offset if inside[1] is None else offset + weight @ inside[1].double()
    return weight @ inside[0].double(), offset, len(inside[0]), source


class _Network:
    """A chain of cross layers over one join, and what reads the last."""

    def __init__(self, gm: fx.GraphModule, join: Join, chain: list[_Layer]) -> None:
        self._gm, self._join, self._chain = gm, join, chain
        self._mine, self._theirs = join.places()
        self._dtype = value(join.each).dtype
        self._added = 0
        out = chain[-1].out
        self._heads: list[tuple[fx.Node, Tensor, list[tuple[fx.Node, Tensor]]]] = []
        for node in gm.graph.nodes:
            if not is_call(node, aten.linear.default) or (held := weights(gm, node)) is None:
                continue
            source = node.args[0]
            if value(node).ndim != 2 or not isinstance(source, fx.Node):
                continue
            terms = opened(source, held[0].double(), whole=out)
            here = [columns for leaf, columns in terms if leaf is out]
            if here:
                others = [term for term in terms if term[0] is not out]
                self._heads.append((node, torch.stack(here).sum(0), others))
        # Each head reads the last layer once, by one node.
        self._whole = len(out.users) != len(self._heads)
        outputs = sum(len(columns) for _, columns, _ in self._heads)
        self._outputs = len(self._mine) if self._whole else outputs
        self._forward = self._whole or outputs > len(self._theirs) * (len(chain) - 1)

    def split(self) -> Change | None:
        before, after, once = self._counts()
        if after + once / _CANDIDATES > _WORTH * before:
            return None
        out = self._chain[-1].out
        with self._gm.graph.inserting_before(out):
            self._emit()
            if self._whole:
                out.replace_all_uses_with(self._last())
        if not self._whole:
            for head in self._heads:
                self._read(*head)
        detail = f"{before} multiply-adds for each candidate become {after}, and {once} once"
        return Change("split cross layers", out.name, detail, self._added)

    def _counts(self) -> tuple[int, int, int]:
        """Multiply-adds for each candidate before and after, and once for the request."""
        depth, few, many = len(self._chain), len(self._theirs), len(self._mine)
        width, outputs = few + many, self._outputs
        costs = [layer.multiply_adds(few if k == 0 else width) for k, layer in enumerate(self._chain)]
        if not self._whole and outputs <= _CONTRACTED:
            costs[-1] = min(costs[-1], outputs * width * (few + 1))
        before = sum(costs) + (0 if self._whole else outputs * width)
        after = few * few * depth * (depth + 1) // 2
        after += many * few * depth if self._whole else outputs * (depth + 1) * few
        formed = depth - 1 if self._forward else depth - 2
        once = many * many * few * formed * (formed + 1) // 2 + few * few * many * depth * (depth - 1) // 2
        if not self._forward:
            once += outputs * many * many
        return before, after, once if self._whole else once + outputs * many * few * depth

    def _emit(self) -> None:
        """The candidate's blocks of all layers, and the request's matrices."""
        gm, u, i = self._gm, self._join.once, self._join.each
        few, many = len(self._theirs), len(self._mine)
        column = emit(gm, aten.reshape.default, (u, [many, 1]))
        blocks = [i]
        constant_part: fx.Node | None = None  # a_l (1, D_u), None for 1
        matrices: fx.Node | None = None  # A_(l,j) side by side (D_u, l D_i)
        for depth, layer in enumerate(self._chain):
            uu, ui = self._blocks(layer.weight, self._mine)
            iu, ii = self._blocks(layer.weight, self._theirs)
            row = u if constant_part is None else emit(gm, aten.mul.Tensor, (u, constant_part))
            across = self._linear(row, iu, layer.bias[self._theirs])
            weight = self._held(ii)
            scaled = None if matrices is None else emit(gm, aten.mul.Tensor, (column, matrices))
            if scaled is not None:
                met = emit(gm, aten.matmul.default, (self._held(iu), scaled))
                weight = emit(gm, aten.cat.default, ([met, weight], 1))
            bias = emit(gm, aten.reshape.default, (across, [few]))
            step = emit(gm, aten.linear.default, (joined(gm, blocks), weight, bias))
            self._before = uu, ui, matrices
            blocks.append(emit(gm, aten.add.Tensor, (blocks[-1], emit(gm, aten.mul.Tensor, (i, step)))))
            grown = self._linear(row, uu, layer.bias[self._mine] + (constant_part is None))
            if constant_part is not None:
                grown = emit(gm, aten.add.Tensor, (constant_part, grown))
            constant_part = grown
            if depth + 1 < len(self._chain) or self._forward:
                new = self._held(ui)
                if matrices is not None and scaled is not None:
                    more = emit(gm, aten.matmul.default, (self._held(uu), scaled))
                    matrices = emit(gm, aten.add.Tensor, (matrices, more))
                    new = emit(gm, aten.cat.default, ([matrices, new], 1))
                matrices = new
        assert constant_part is not None
        self._row = emit(gm, aten.mul.Tensor, (u, constant_part))
        self._constant_part, self._matrices = constant_part, matrices
        self._all, self._last_block = joined(gm, blocks), blocks[-1]
        self._earlier = joined(gm, blocks[:-1]) if self._whole else None

    def _last(self) -> fx.Node:
        """The last layer, whole."""
        gm, many = self._gm, len(self._mine)
        bias = emit(gm, aten.reshape.default, (self._constant_part, [many]))
        factor = emit(gm, aten.linear.default, (self._earlier, self._matrices, bias))
        mine = emit(gm, aten.mul.Tensor, (self._join.once, factor))
        order = torch.tensor([*self._mine, *self._theirs]).argsort()
        made = emit(gm, aten.cat.default, ([mine, self._last_block], 1))
        if order.tolist() == sorted(order.tolist()):
            return made
        return emit(gm, aten.index_select.default, (made, 1, add_constant(gm, "positions", order)))

    def _read(self, head: fx.Node, columns: Tensor, others: list[tuple[fx.Node, Tensor]]) -> None:
        """A linear map of the last layer by its blocks, beside a map of what else it reads."""
        gm = self._gm
        bias = weights(gm, head)[1]  # type: ignore[index]  # an argument of a node is of any type
        mine, theirs = columns[:, self._mine], columns[:, self._theirs]
        with gm.graph.inserting_before(head):
            across = self._linear(self._row, mine, bias)
            factor = emit(gm, aten.mul.Tensor, (self._held(mine), self._join.once))  # (h, D_u)
            uu, ui, matrices = self._before
            parts = [emit(gm, aten.matmul.default, (factor, self._held(ui)))]
            if self._forward:
                parts = [emit(gm, aten.matmul.default, (factor, self._matrices))]
            elif matrices is not None:
                further = emit(gm, aten.matmul.default, (factor, self._held(uu)))
                further = emit(gm, aten.mul.Tensor, (further, self._join.once))
                further = emit(gm, aten.add.Tensor, (factor, further))
                parts.insert(0, emit(gm, aten.matmul.default, (further, matrices)))
            weight = emit(gm, aten.cat.default, ([*parts, self._held(theirs)], 1))
            offset = emit(gm, aten.reshape.default, (across, [len(columns)]))
            total = emit(gm, aten.linear.default, (self._all, weight, offset))
            if others:
                beside = self._linear(
                    joined(gm, [leaf for leaf, _ in others]), torch.cat([mine for _, mine in others], 1), None
                )
                total = emit(gm, aten.add.Tensor, (total, beside))
        head.replace_all_uses_with(total)

    def _blocks(self, weight: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The columns of the request and of the candidate, in these rows of a map."""
        return weight[rows][:, self._mine], weight[rows][:, self._theirs]

    def _held(self, tensor: Tensor) -> fx.Node:
        self._added += tensor.numel() * self._dtype.itemsize
        return add_constant(self._gm, f"{self._chain[-1].out.name}_block", tensor.to(self._dtype))

    def _linear(self, x: fx.Node, weight: Tensor, bias: Tensor | None) -> fx.Node:
        arguments = [self._held(weight)] + ([] if bias is None else [self._held(bias)])
        return emit(self._gm, aten.linear.default, (x, *arguments))
