"""Keys and values read by one query are never formed (A8 ii).

    q (W_k x_t + b_k)        =  (W_k^T q) x_t + q b_k           keys K = linear(x), per head; scores of all t
    sum_t a_t (W_v x_t + b_v)  =  W_v (sum_t a_t x_t) + (sum_t a_t) b_v

with x (B, T, d), q (B, H, 1, d_h), a (B, H, 1, T), W (H d_h, d). In place of T d products for each of the H d_h channels of
K, or of V, that is T for each of H heads and one product with W: T d H d_h + T H d_h -> T d H + d H d_h.

Softmax drops what all keys have in common, so q b_k is left out where only a softmax reads the scores (a mask added on
the way or not), and its weights sum to 1. In `scaled_dot_product_attention` a query whose keys are all masked has weights 0,
and b_v is left out there. Heads may be cut from the linear in any way by views: how is read by moving indices through them.

When it does not apply: several queries; a linear that is read in full by anything else (q at one position is not);
heads before batches; keys or values that are repeated; where it takes no fewer multiply-adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ...graph import add_constant, emit, is_call, value
from ..base import Change
from .linears import linear_weights
from .moves import reads_strides
from .positions import MOVES
from .purity import writes
from .sizes import Sizes, shape_of, writable

__all__ = ["absorb_keys"]

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_ROWS = 3  # what stands for a number of rows while indices move
_LARGEST = 1 << 23


@dataclass(frozen=True)
class Heads:
    """Keys or values as channels (H, d_h) of a linear; its rows are (B, T), or (T, B) if `steps_first`."""

    linear: fx.Node
    batch: sympy.Expr
    steps: int
    channels: Tensor
    steps_first: bool


@dataclass(frozen=True)
class Use:
    """A call that reads keys (its second argument) or values (its last) of one query."""

    node: fx.Node
    argument: int
    heads: Heads


def absorb_keys(gm: fx.GraphModule) -> list[Change]:
    """Rewrites attention by one query; edits `gm` in place. Adds the weights by head."""
    if writes(gm) or reads_strides(gm):
        return []
    changes: list[Change] = []
    uses: dict[fx.Node, list[Use]] = {}
    for node in gm.graph.nodes:
        for use in _uses(gm, node):
            uses.setdefault(use.heads.linear, []).append(use)
    good = {linear for linear, found in uses.items() if _spared(linear, found) and _saves(linear, found)}
    chosen: dict[fx.Node, dict[int, Heads]] = {}
    for linear, found in uses.items():
        for use in found if linear in good else []:
            chosen.setdefault(use.node, {})[use.argument] = use.heads
    sizes = Sizes(gm)
    for node, heads in chosen.items():
        if is_call(node, _ATTENTION) and len(heads) < 2:
            continue
        writer = _Writer(gm, sizes)
        with gm.graph.inserting_before(node):
            made = writer.rewrite(node, heads)
        node.replace_all_uses_with(made)
        gm.graph.erase_node(node)
        names = ", ".join(dict.fromkeys(found.linear.name for found in heads.values()))
        detail = f"one query reads what {names} would be made from"
        changes.append(Change("absorb keys", node.name, detail, writer.added))
    return changes


def _uses(gm: fx.GraphModule, node: fx.Node) -> Iterator[Use]:
    """Keys and values of one query that the node reads, where they are heads of a linear."""
    if is_call(node, _ATTENTION):
        yield from _attention(gm, node)
    elif is_call(node, *_PRODUCTS) and value(node).ndim >= 3 and shape_of(node)[-2] == 1:
        row, matrix = node.args
        assert isinstance(row, fx.Node) and isinstance(matrix, fx.Node)
        if shape_of(row)[:-2] != shape_of(matrix)[:-2]:
            return
        for argument, transposed in ((1, True), (2, False)):
            heads = _heads(gm, matrix, transposed)
            if heads is not None:
                yield Use(node, argument, heads)
                return


def _attention(gm: fx.GraphModule, node: fx.Node) -> Iterator[Use]:
    """One query of each head, of the same x for keys and values."""
    query, keys, values = node.args[:3]
    rest: list[Any] = [*node.args[3:6], *[None, 0.0, False][len(node.args) - 3 :]]
    mask, dropout, causal = rest
    assert isinstance(query, fx.Node) and isinstance(keys, fx.Node) and isinstance(values, fx.Node)
    shape = shape_of(query)
    if causal or dropout or len(shape) != 4 or shape[2] != 1 or set(node.kwargs) - {"scale"}:
        return
    if not shape[:2] == shape_of(keys)[:2] == shape_of(values)[:2]:
        return
    if isinstance(mask, fx.Node) and value(mask).ndim not in (2, 4):
        return
    found = [_heads(gm, matrix, transposed=False) for matrix in (keys, values)]
    if found[0] is None or found[1] is None or found[0].linear.args[0] is not found[1].linear.args[0]:
        return
    if (
        found[0].steps_first == found[1].steps_first
        and len(found[0].channels) == len(found[1].channels) == shape[1]
    ):
        yield Use(node, 1, found[0])
        yield Use(node, 2, found[1])


def _heads(gm: fx.GraphModule, matrix: fx.Node, transposed: bool) -> Heads | None:
    """How the rows of `matrix` (..., T, d_h), or its columns, are cut from a linear."""
    chain = [matrix]
    while is_call(chain[-1], *MOVES):
        first = chain[-1].args[0]
        if not isinstance(first, fx.Node):
            return None
        chain.append(first)
    linear = chain.pop()
    if not chain or not is_call(linear, aten.linear.default) or _weights(gm, linear) is None:
        return None
    index = _moved_index(linear, chain[::-1])
    if index is None:
        return None
    index = index.transpose(-1, -2) if transposed else index
    steps, width = index.shape[-2:]
    index = index.reshape(-1, steps, width)
    rows, channels = index // value(linear).shape[-1], index % value(linear).shape[-1]
    if (rows != rows[..., :1]).any() or (channels != channels[:, :1]).any():
        return None
    rows, channels = rows[..., 0], channels[:, 0]
    heads = len(set(map(tuple, channels.tolist())))
    batch = sympy.prod(shape_of(matrix)[:-2]) / heads
    count = len(rows) // heads
    if (
        not batch.is_integer
        or len(rows) % heads
        or not writable([batch, *shape_of(matrix), *shape_of(linear)])
    ):
        return None
    if (channels != channels[:heads].repeat(count, 1)).any():
        return None
    plain = torch.arange(count * steps)
    for steps_first, order in ((False, plain.view(count, steps)), (True, plain.view(steps, count).t())):
        if torch.equal(rows, order.repeat_interleave(heads, 0)):
            return Heads(linear, batch, steps, channels[:heads], steps_first)
    return None


def _moved_index(source: fx.Node, chain: list[fx.Node]) -> Tensor | None:
    """The places of `source` that end up in the last of these views of it, with `_ROWS` for each symbol."""
    shape = [_number(size) for size in shape_of(source)]
    if sympy.prod(shape) > _LARGEST:
        return None
    held: dict[fx.Node, Any] = {source: torch.arange(int(sympy.prod(shape))).view(shape)}
    for node in chain:
        for argument in node.all_input_nodes:
            if argument not in held:
                size = argument.meta.get("val")
                if not isinstance(size, torch.SymInt):
                    return None
                held[argument] = _number(size.node.expr)
        target = aten.reshape.default if is_call(node, aten.view.default) else node.target
        args, kwargs = fx.map_arg((node.args, node.kwargs), held.__getitem__)
        held[node] = target(*args, **kwargs)  # type: ignore[operator]
    found = held[chain[-1]]
    return found if isinstance(found, Tensor) else None


def _number(size: sympy.Expr) -> int:
    return int(size.subs(dict.fromkeys(size.free_symbols, _ROWS)))


def _spared(linear: fx.Node, uses: list[Use]) -> bool:
    """Whether nothing but these uses reads the linear, save at one of its steps."""
    absorbed = {(use.node, use.argument if is_call(use.node, _ATTENTION) else 1) for use in uses}
    steps = uses[0].heads.steps
    pending: list[list[fx.Node]] = [[linear]]
    while pending:
        path = pending.pop()
        for user in path[-1].users:
            if is_call(user, *MOVES):
                pending.append([*path, user])
                continue
            places = [place for place, argument in enumerate(user.args) if argument is path[-1]]
            if places and all((user, place) in absorbed for place in places):
                continue
            index = _moved_index(linear, path[1:]) if len(path) > 1 else None
            if index is None:
                return False
            rows = set((index // value(linear).shape[-1]).flatten().tolist())
            if len(rows) * steps * value(linear).shape[-1] > sympy.prod(map(_number, shape_of(linear))):
                return False
    return True


def _saves(linear: fx.Node, uses: list[Use]) -> bool:
    """Whether multiply-adds fall."""
    width = int(value(linear.args[0]).shape[-1])  # type: ignore[arg-type]
    before = after = 0
    for use in uses:
        steps, (heads, channels) = use.heads.steps, use.heads.channels.shape
        before += steps * heads * channels * (width + 1)
        after += steps * heads * width + heads * channels * width
    return after < before


def _weights(gm: fx.GraphModule, linear: fx.Node) -> tuple[Tensor, Tensor | None] | None:
    """The weight and bias of a linear map, no bias where it is zero; None where they are not constant."""
    held = linear_weights(gm, linear)
    if held is None:
        return None
    weight, bias = held
    return weight, bias if bias is not None and bool(bias.count_nonzero()) else None


class _Writer:
    """Writes one attention, or one of its two products, in front of it."""

    def __init__(self, gm: fx.GraphModule, sizes: Sizes) -> None:
        self._gm, self._sizes = gm, sizes
        self.added = 0

    def rewrite(self, node: fx.Node, heads: dict[int, Heads]) -> fx.Node:
        """What gives the node's result."""
        if is_call(node, _ATTENTION):
            made = self._attention(node, heads[1], heads[2])
        elif 1 in heads:
            made = self._scores(node, heads[1])
        else:
            made = self._pooled(node, heads[2])
        return self._emit(aten.reshape.default, made, self._sizes.all(shape_of(node)))

    def _emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return emit(self._gm, target, args, kwargs)

    def _constant(self, name: str, tensor: Tensor) -> fx.Node:
        self.added += tensor.nbytes
        return add_constant(self._gm, name, tensor.contiguous())

    def _attention(self, node: fx.Node, keys: Heads, values: Heads) -> fx.Node:
        """The heads' queries as rows of one attention to x."""
        query = self._emit(aten.unsqueeze.default, self._queries(node.args[0], keys), 1)
        x = self._emit(aten.unsqueeze.default, self._source(keys), 1)
        mask: Any = node.args[3] if len(node.args) > 3 else None
        if mask is not None and value(mask).ndim == 4:
            mask = self._emit(aten.transpose.int, mask, 1, 2)
        scale = node.kwargs.get("scale")
        scale = keys.channels.shape[1] ** -0.5 if scale is None else scale
        pooled = self._emit(_ATTENTION, query, x, x, mask, 0.0, False, scale=scale)
        pooled = self._emit(aten.squeeze.dim, pooled, 1)
        total = None if mask is None else self._any(mask, value(pooled).dtype)
        return self._values(pooled, values, total)

    def _any(self, mask: fx.Node, dtype: torch.dtype) -> fx.Node:
        """1 where a query has a key, 0 where all are masked: (B, H, 1), or that with ones for B and H."""
        if value(mask).dtype != torch.bool:
            mask = self._emit(aten.ne.Scalar, mask, float("-inf"))
        some = self._emit(aten.to.dtype, self._emit(aten.any.dim, mask, -1, True), dtype)
        return self._emit(aten.squeeze.dim, some, 1) if value(some).ndim == 4 else some

    def _scores(self, node: fx.Node, keys: Heads) -> fx.Node:
        query = node.args[0]
        x = self._emit(aten.transpose.int, self._source(keys), 1, 2)
        scores = self._emit(aten.bmm.default, self._queries(query, keys), x)
        weights = _weights(self._gm, keys.linear)
        assert weights is not None
        if weights[1] is not None and not _only_softmax(node):
            bias = self._constant(f"{keys.linear.name}_bias", weights[1][keys.channels])
            product = self._emit(aten.mul.Tensor, self._heads(query, keys), bias)
            scores = self._emit(
                aten.add.Tensor, scores, self._emit(aten.sum.dim_IntList, product, [-1], True)
            )
        return scores

    def _pooled(self, node: fx.Node, values: Heads) -> fx.Node:
        given = node.args[0]
        assert isinstance(given, fx.Node)
        sizes = [values.batch, len(values.channels), values.steps]
        weights = self._emit(aten.reshape.default, given, self._sizes.all(sizes))
        pooled = self._emit(aten.bmm.default, weights, self._source(values))
        total = None if _is_softmax(given) else self._emit(aten.sum.dim_IntList, weights, [-1], True)
        return self._values(pooled, values, total)

    def _source(self, heads: Heads) -> fx.Node:
        """x (B, T, d)."""
        x = heads.linear.args[0]
        assert isinstance(x, fx.Node)
        order = [heads.steps, heads.batch] if heads.steps_first else [heads.batch, heads.steps]
        want = [*order, shape_of(x)[-1]]
        if shape_of(x) != want:
            x = self._emit(aten.reshape.default, x, self._sizes.all(want))
        return self._emit(aten.transpose.int, x, 0, 1) if heads.steps_first else x

    def _heads(self, query: Any, heads: Heads) -> fx.Node:
        """q (B, H, d_h)."""
        return self._emit(aten.reshape.default, query, self._sizes.all([heads.batch, *heads.channels.shape]))

    def _queries(self, query: Any, keys: Heads) -> fx.Node:
        """W_k^T q, (B, H, d)."""
        weights = _weights(self._gm, keys.linear)
        assert weights is not None
        return self._by_head(self._heads(query, keys), weights[0][keys.channels], keys)

    def _values(self, pooled: fx.Node, values: Heads, total: fx.Node | None) -> fx.Node:
        """W_v of sums of x (B, H, d), and the bias times the sum of their weights: (B, H, d_h)."""
        weights = _weights(self._gm, values.linear)
        assert weights is not None
        weight, bias = weights
        made = self._by_head(pooled, weight[values.channels].transpose(1, 2), values)
        if bias is None:
            return made
        shift = self._constant(f"{values.linear.name}_bias", bias[values.channels])
        if total is not None:
            shift = self._emit(aten.mul.Tensor, total, shift)
        return self._emit(aten.add.Tensor, made, shift)

    def _by_head(self, x: fx.Node, weight: Tensor, heads: Heads) -> fx.Node:
        """x (B, H, a) times weight (H, a, b): (B, H, b)."""
        name = f"{heads.linear.name}_heads"
        if len(weight) == 1:
            return self._emit(aten.linear.default, x, self._constant(name, weight[0].t()))
        held = self._constant(name, weight)
        made = self._emit(aten.bmm.default, self._emit(aten.transpose.int, x, 0, 1), held)
        return self._emit(aten.transpose.int, made, 0, 1)


def _is_softmax(node: fx.Node) -> bool:
    return is_call(node, aten.softmax.int, aten._softmax.default) and node.args[1] in (
        -1,
        value(node).ndim - 1,
    )


def _only_softmax(node: fx.Node) -> bool:
    """Whether scores are read by a softmax alone, scaled and added to on the way."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        if _is_softmax(user):
            return True
        scaled = is_call(user, aten.mul.Tensor, aten.div.Tensor) and isinstance(user.args[1], (int, float))
        added = is_call(user, aten.add.Tensor) and not user.kwargs and user.args[0] is not user.args[1]
        moved = is_call(user, aten.view.default, aten.reshape.default, aten.unsqueeze.default)
        if not (scaled or added or (moved and shape_of(user)[-1] == shape_of(node)[-1])):
            return False
        node = user
    return False
