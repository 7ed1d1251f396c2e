"""Keys and values read by one query, or by the queries of one head, are never formed (A8 ii).

    q (W_k x_t + b_k)          =  (W_k^T q) x_t + q b_k           keys K = linear(x), per head; scores of all t
    sum_t a_t (W_v x_t + b_v)  =  W_v (sum_t a_t x_t) + (sum_t a_t) b_v

with x (B, T, d), q (B, H, S, d_h), a (B, H, S, T), W (H d_h, d). In place of T products for each of the H d_h channels of
K, or of V, those are S: T d H d_h + S T H d_h -> S T H d + S H d d_h. That is less for one query of any number of heads.
Of one head W_k^T is then one map with that of the query, and W_v with the one that reads the result (`merge_chains`), so
that S = T queries take one map in place of two on both sides; these are counted:

    q = W_q n + b_q:   W_k^T q  =  (W_k^T W_q) n + W_k^T b_q
    W_o (W_v y + (sum_t a_t) b_v) + b_o  =  (W_o W_v) y + (sum_t a_t) W_o b_v + b_o               y = sum_t a_t x_t

Softmax drops what all keys have in common, so q b_k is left out where only a softmax reads the scores (a mask added on
the way or not), and its weights sum to 1. In `scaled_dot_product_attention` a query whose keys are all masked has weights 0,
and b_v is left out there; the scale stays that of d_h.

When it does not apply: several queries of several heads; a linear that is read in full by anything else (q at one
position is not); heads before batches; keys or values that are repeated; numbers of queries or keys that are not
fixed; where it takes no fewer multiply-adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit, is_call, value
from ..base import Change
from .chains import moves_after, replayed, scale_of
from .heads import Heads, Use, attention_settings, heads_of, spared, weights_of
from .moves import reads_strides
from .purity import writes
from .sizes import Sizes, shape_of

__all__ = ["absorb_keys"]

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
_PRODUCTS = (aten.matmul.default, aten.bmm.default)


def absorb_keys(gm: fx.GraphModule) -> list[Change]:
    """Rewrites attention by one query, or of one head; edits `gm` in place. Adds the weights by head."""
    if writes(gm) or reads_strides(gm):
        return []
    changes: list[Change] = []
    chosen: dict[fx.Node, dict[int, Heads]] = {}
    for group in _groups([use for node in gm.graph.nodes for use in _uses(gm, node)]):
        good = _spared(group)
        for use in good if _saves(gm, good) else []:
            chosen.setdefault(use.node, {})[use.argument] = use.heads
    sizes = Sizes(gm)
    absorbed = {found.linear for heads in chosen.values() for found in heads.values()}
    for node, heads in chosen.items():
        writer = _Writer(gm, sizes, absorbed)
        with gm.graph.inserting_before(node):
            made = writer.rewrite(node, heads)
        node.replace_all_uses_with(made)
        gm.graph.erase_node(node)
        names = ", ".join(dict.fromkeys(found.linear.name for place, found in heads.items() if place))
        readers = "one query reads" if _queries_of(node) == 1 else "the queries of one head read"
        detail = f"{readers} what {names} would be made from"
        changes.append(Change("absorb keys", node.name, detail, writer.added))
    return changes


def _uses(gm: fx.GraphModule, node: fx.Node) -> Iterator[Use]:
    """Keys and values of one query or one head that the node reads, and its queries, where they are heads of a linear."""
    if is_call(node, _ATTENTION):
        yield from _attention(gm, node)
    elif is_call(node, *_PRODUCTS) and value(node).ndim >= 3 and shape_of(node)[-2].is_Integer:
        row, matrix = node.args
        assert isinstance(row, fx.Node) and isinstance(matrix, fx.Node)
        if shape_of(row)[:-2] != shape_of(matrix)[:-2]:
            return
        for argument, transposed in ((1, True), (2, False)):
            heads = heads_of(gm, matrix, transposed)
            if heads is not None and (_queries_of(node) == 1 or len(heads.channels) == 1):
                yield Use(node, argument, heads)
                if argument == 1:
                    yield from _query(gm, node, heads)
                return


def _attention(gm: fx.GraphModule, node: fx.Node) -> Iterator[Use]:
    """Queries of each head, of the same x for keys and values."""
    query, keys, values = node.args[:3]
    mask, dropout, causal = attention_settings(node)
    assert isinstance(query, fx.Node) and isinstance(keys, fx.Node) and isinstance(values, fx.Node)
    shape = shape_of(query)
    if dropout or len(shape) not in (3, 4) or set(node.kwargs) - {"scale"} or not shape[-2].is_Integer:
        return
    if not shape[:-2] == shape_of(keys)[:-2] == shape_of(values)[:-2]:
        return
    if isinstance(mask, fx.Node) and value(mask).ndim not in (2, len(shape)):
        return
    found = [heads_of(gm, matrix, transposed=False) for matrix in (keys, values)]
    if found[0] is None or found[1] is None or found[0].linear.args[0] is not found[1].linear.args[0]:
        return
    heads = shape[1] if len(shape) == 4 else 1
    if heads != 1 and (shape[2] != 1 or causal):
        return
    if (
        found[0].steps_first == found[1].steps_first
        and len(found[0].channels) == len(found[1].channels) == heads
    ):
        yield Use(node, 1, found[0])
        yield Use(node, 2, found[1])
        yield from _query(gm, node, found[0])


def _query(gm: fx.GraphModule, node: fx.Node, keys: Heads) -> Iterator[Use]:
    """The queries of one head."""
    query = node.args[0]
    assert isinstance(query, fx.Node)
    heads = heads_of(gm, query, transposed=False) if len(keys.channels) == 1 else None
    if heads is not None and len(heads.channels) == 1 and heads.batch == keys.batch:
        yield Use(node, 0, heads)


def _queries_of(node: fx.Node) -> int:
    """How many queries an attention, or a product, has for each head."""
    return int(value(node).shape[-2])


def _groups(uses: list[Use]) -> list[list[Use]]:
    """Uses that are absorbed together or not at all: those of one linear, and of one call."""
    groups: list[list[Use]] = []
    for use in uses:
        mine = [
            group
            for group in groups
            if any(other.node is use.node or other.heads.linear is use.heads.linear for other in group)
        ]
        groups = [group for group in groups if group not in mine]
        groups.append([*(other for group in mine for other in group), use])
    return groups


def _spared(group: list[Use]) -> list[Use]:
    """The uses whose linears nothing else reads; none where keys or values are read."""
    by_linear: dict[fx.Node, list[Use]] = {}
    for use in group:
        by_linear.setdefault(use.heads.linear, []).append(use)
    kept: list[Use] = []
    for linear, uses in by_linear.items():
        if spared(linear, uses):
            kept += uses
        elif any(use.argument for use in uses):
            return []
    return kept


def _saves(gm: fx.GraphModule, uses: list[Use]) -> bool:
    """Whether multiply-adds fall."""
    before = after = 0
    queries = {use.node: use.heads for use in uses if use.argument == 0}
    for use in uses:
        if use.argument == 0:
            continue
        steps, (heads, channels) = use.heads.steps, use.heads.channels.shape
        width = _width(use.heads.linear)
        rows = heads * _queries_of(use.node)
        before += steps * channels * (heads * width + rows)
        after += rows * steps * width
        beside = None
        if use.argument == 1 and use.node in queries:
            beside = _width(queries[use.node].linear)
        elif use.argument == 2 and heads == 1 and (found := _outer(gm, use.node)) is not None:
            beside = len(found[2])
        # What a map of these channels beside the absorbed one adds to it, or is left of both as one.
        apart = channels * width
        after += rows * (apart if beside is None else min(apart, beside * (width - channels)))
    return after < before


def _width(linear: fx.Node) -> int:
    return int(value(linear.args[0]).shape[-1])  # type: ignore[arg-type]  # an argument of a node is of any type


def _outer(gm: fx.GraphModule, node: fx.Node) -> tuple[list[fx.Node], fx.Node, Tensor] | None:
    """The linear map that alone reads a node, the moves before it, and its weights."""
    moves, outer = moves_after(node)
    held = None if outer is None else weights_of(gm, outer)
    return None if outer is None or held is None else (moves, outer, held[0])


class _Writer:
    """Writes one attention, or one of its two products, in front of it."""

    def __init__(self, gm: fx.GraphModule, sizes: Sizes, absorbed: set[fx.Node]) -> None:
        self._gm, self._sizes, self._absorbed = gm, sizes, absorbed
        self.added = 0

    def rewrite(self, node: fx.Node, heads: dict[int, Heads]) -> fx.Node:
        """What gives the node's result."""
        if is_call(node, _ATTENTION):
            made = self._attention(node, heads)
        elif 1 in heads:
            made = self._scores(node, heads)
        else:
            made = self._pooled(node, heads[2])
        return self._emit(aten.reshape.default, made, self._sizes.all(shape_of(node)))

    def _emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return emit(self._gm, target, args, kwargs)

    def _constant(self, heads: Heads, tensor: Tensor) -> fx.Node:
        self.added += tensor.nbytes
        return add_constant(self._gm, f"{heads.linear.name}_heads", tensor.contiguous())

    def _attention(self, node: fx.Node, heads: dict[int, Heads]) -> fx.Node:
        """The queries of one head, or each head's one, as rows of one attention to x."""
        keys, several = heads[1], len(heads[1].channels) > 1
        query = self._emit(aten.unsqueeze.default, self._queries(node, heads), 1)
        x = self._emit(aten.unsqueeze.default, self._source(keys), 1)
        mask, _, causal = attention_settings(node)
        if mask is not None and value(mask).ndim == 3:
            mask = self._emit(aten.unsqueeze.default, mask, 1)
        known = mask is None or self._has_keys(mask)
        if mask is not None and value(mask).ndim == 4 and several:
            mask = self._emit(aten.transpose.int, mask, 1, 2)
        scale = node.kwargs.get("scale")
        scale = keys.channels.shape[1] ** -0.5 if scale is None else scale
        pooled = self._emit(_ATTENTION, query, x, x, mask, 0.0, causal, scale=scale)
        pooled = self._emit(aten.squeeze.dim, pooled, 1)
        total = None if known else self._any(mask, value(pooled).dtype)
        return self._values(node, pooled, heads[2], total)

    def _has_keys(self, mask: fx.Node) -> bool:
        """Whether it is known that each query has a key."""
        held = constant(self._gm, mask)
        if held is None:
            return False
        return bool((held if held.dtype == torch.bool else held != float("-inf")).any(-1).all())

    def _any(self, mask: fx.Node, dtype: torch.dtype) -> fx.Node:
        """1 where a query has a key, 0 where all are masked: (B, H, 1), or that with ones for B and H."""
        if value(mask).dtype != torch.bool:
            mask = self._emit(aten.ne.Scalar, mask, float("-inf"))
        some = self._emit(aten.to.dtype, self._emit(aten.any.dim, mask, -1, True), dtype)
        return self._emit(aten.squeeze.dim, some, 1) if value(some).ndim == 4 else some

    def _scores(self, node: fx.Node, heads: dict[int, Heads]) -> fx.Node:
        keys = heads[1]
        x = self._emit(aten.transpose.int, self._source(keys), 1, 2)
        scores = self._emit(aten.bmm.default, self._queries(node, heads), x)
        bias = self._weights(keys)[1]
        if bias is None or _only_softmax(node):
            return scores
        if 0 in heads:
            # A map of its own, so that the queries have one reader.
            weight, start = self._weights(heads[0])
            row = bias.double() @ weight[0].double()
            shift = None if start is None else (bias.double() @ start[0].double()).to(bias.dtype)
            constants = [row.to(bias.dtype)] if shift is None else [row.to(bias.dtype), shift]
            product = self._linear(keys, self._source(heads[0]), *constants)
        else:
            product = self._emit(aten.mul.Tensor, self._rows(node, keys), self._constant(keys, bias))
            product = self._emit(aten.sum.dim_IntList, product, [-1], True)
        return self._emit(aten.add.Tensor, scores, product)

    def _pooled(self, node: fx.Node, values: Heads) -> fx.Node:
        given = node.args[0]
        assert isinstance(given, fx.Node)
        sizes = [values.batch, len(values.channels) * _queries_of(node), values.steps]
        weights = self._emit(aten.reshape.default, given, self._sizes.all(sizes))
        pooled = self._emit(aten.bmm.default, weights, self._source(values))
        total = None if _is_softmax(given) else self._emit(aten.sum.dim_IntList, weights, [-1], True)
        return self._values(node, pooled, values, total)

    def _source(self, heads: Heads) -> fx.Node:
        """x (B, T, d)."""
        x = heads.linear.args[0]
        assert isinstance(x, fx.Node)
        order = [heads.steps, heads.batch] if heads.steps_first else [heads.batch, heads.steps]
        want = [*order, shape_of(x)[-1]]
        if shape_of(x) != want:
            x = self._emit(aten.reshape.default, x, self._sizes.all(want))
        return self._emit(aten.transpose.int, x, 0, 1) if heads.steps_first else x

    def _rows(self, node: fx.Node, keys: Heads) -> fx.Node:
        """q (B, S H, d_h)."""
        heads, channels = keys.channels.shape
        sizes = [keys.batch, heads * _queries_of(node), channels]
        return self._emit(aten.reshape.default, node.args[0], self._sizes.all(sizes))

    def _queries(self, node: fx.Node, heads: dict[int, Heads]) -> fx.Node:
        """W_k^T q, (B, S H, d)."""
        keys = heads[1]
        if 0 in heads:
            weight, bias = self._weights(heads[0])
            constants = [weight[0]] if bias is None else [weight[0], bias[0]]
            rows = self._linear(heads[0], self._source(heads[0]), *constants)
        else:
            rows = self._rows(node, keys)
        return self._by_head(rows, self._weights(keys)[0], keys)

    def _values(self, node: fx.Node, pooled: fx.Node, values: Heads, total: fx.Node | None) -> fx.Node:
        """W_v of sums of x (B, S H, d), and the bias times the sum of their weights: (B, S H, d_h)."""
        weight, bias = self._weights(values)
        weight = weight.transpose(1, 2)
        if bias is None:
            return self._by_head(pooled, weight, values)
        if total is None and len(weight) == 1:
            return self._by_head(pooled, weight, values, bias[0])
        made = self._by_head(pooled, weight, values)
        outer = _outer(self._gm, node) if len(weight) == 1 else None
        # Another attention's linear is not read as it stands.
        if total is not None and outer is not None and outer[1] not in self._absorbed:
            self._add_behind(node, total, values, outer)
            return made
        shift = self._constant(values, bias)
        if total is not None:
            shift = self._emit(aten.mul.Tensor, total, shift)
        return self._emit(aten.add.Tensor, made, shift)

    def _add_behind(
        self, node: fx.Node, total: fx.Node, values: Heads, outer: tuple[list[fx.Node], fx.Node, Tensor]
    ) -> None:
        """Adds the sums of weights, (B, S, 1) or with ones in place of B and S, times W_o b_v behind W_o."""
        moves, reader, weight = outer
        shape = shape_of(node)[:-1]
        *batch, queries = shape
        total = self._emit(aten.expand.default, total, self._sizes.all([sympy.prod(batch), queries, 1]))
        total = self._emit(aten.reshape.default, total, self._sizes.all([*shape, 1]))
        bias = self._weights(values)[1]
        assert bias is not None
        shift = (scale_of(moves) * weight.double() @ bias[0].double()).to(bias.dtype)
        with self._gm.graph.inserting_before(reader.next):
            moved = replayed(self._gm, moves, total)
            added = self._emit(aten.mul.Tensor, moved, self._constant(values, shift))
            made = self._emit(aten.add.Tensor, reader, added)
        reader.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)

    def _by_head(self, x: fx.Node, weight: Tensor, heads: Heads, bias: Tensor | None = None) -> fx.Node:
        """x (B, S H, a) times weight (H, a, b): (B, S H, b); of one head with a bias."""
        if len(weight) == 1:
            constants = [weight[0].t()] if bias is None else [weight[0].t(), bias]
            return self._linear(heads, x, *constants)
        made = self._emit(
            aten.bmm.default, self._emit(aten.transpose.int, x, 0, 1), self._constant(heads, weight)
        )
        return self._emit(aten.transpose.int, made, 0, 1)

    def _linear(self, heads: Heads, x: fx.Node, *constants: Tensor) -> fx.Node:
        return self._emit(aten.linear.default, x, *(self._constant(heads, tensor) for tensor in constants))

    def _weights(self, heads: Heads) -> tuple[Tensor, Tensor | None]:
        """The weight (H, d_h, d) and bias (H, d_h) of heads."""
        held = weights_of(self._gm, heads.linear)
        assert held is not None
        weight, bias = ((heads.scale * x.double()).to(x.dtype) if x is not None else None for x in held)
        assert weight is not None
        return weight[heads.channels], None if bias is None else bias[heads.channels]


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
