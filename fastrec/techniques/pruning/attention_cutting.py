"""An attention written with some of its heads.

W_q, W_k, W_v: the rows of these heads; W_o: their columns. What lies between is written anew for heads (B, H', T, d): views,
masks (those that differ by head for the heads that are left) and all that was done to scores, in its order.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ...graph import add_constant, emit, sweep, value
from ..fusion.heads import Heads, attention_settings, moved_index, weights_of
from ..fusion.positions import MOVES
from ..fusion.sizes import Sizes, shape_of
from .attention import Attention

__all__ = ["cut"]

aten = torch.ops.aten


def cut(gm: fx.GraphModule, attention: Attention, kept: Sequence[int], weight: Tensor, bias: Tensor) -> int:
    """Leaves these heads, read by `weight` (O, H' d_v) and `bias` (O,); edits `gm`. The bytes of the constants it adds."""
    writer = _Writer(gm, attention, list(kept))
    out = attention.out
    with gm.graph.inserting_before(out):
        made = writer.write(weight, bias)
    out.replace_all_uses_with(made)
    gm.graph.erase_node(out)
    sweep(gm)
    return writer.added


class _Writer:
    """Writes one attention in front of the map that reads it."""

    def __init__(self, gm: fx.GraphModule, attention: Attention, kept: list[int]) -> None:
        self._gm, self._attention, self._kept = gm, attention, kept
        self._sizes = Sizes(gm)
        self.added = 0

    def write(self, weight: Tensor, bias: Tensor) -> fx.Node:
        """What gives the map's result."""
        query, keys, values = self._heads()
        attention = self._attention
        if attention.steps is None:
            mask, _, causal = attention_settings(attention.node)
            if isinstance(mask, fx.Node):
                mask = self._mask(mask, value(attention.node).ndim == 3)
            pooled = self._emit(
                attention.node.target, query, keys, values, mask, 0.0, causal, **attention.node.kwargs
            )
        else:
            scores = self._emit(aten.matmul.default, query, self._emit(aten.transpose.int, keys, -2, -1))
            for step in attention.steps:
                tensor = None if step.tensor is None else self._mask(step.tensor, step.flat)
                scores = self._emit(step.target, *step.arguments(scores, tensor))
            pooled = self._emit(aten.matmul.default, self._emit(aten.softmax.int, scores, -1), values)
        order = [2, 0, 1, 3] if attention.steps_first else [0, 2, 1, 3]
        rows: Any = attention.out.args[0]
        side_by_side = self._emit(
            aten.reshape.default,
            self._emit(aten.permute.default, pooled, order),
            [*self._sizes.all(shape_of(rows)[:-1]), weight.shape[1]],
        )
        name = attention.out.name
        return self._emit(
            aten.linear.default,
            side_by_side,
            self._constant(f"{name}_weight", weight),
            self._constant(f"{name}_bias", bias),
        )

    def _emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return emit(self._gm, target, args, kwargs)

    def _constant(self, name: str, tensor: Tensor) -> fx.Node:
        tensor = tensor.float().contiguous()
        self.added += tensor.nbytes
        return add_constant(self._gm, name, tensor)

    def _heads(self) -> Iterator[fx.Node]:
        """Queries, keys and values (B, H', T, d): of one map where they were."""
        made: dict[int, fx.Node] = {}
        together: dict[fx.Node, list[int]] = {}
        for role, heads in enumerate(self._attention.heads):
            together.setdefault(heads.linear, []).append(role)
        for linear, roles in together.items():
            mine = [self._attention.heads[role] for role in roles]
            result = self._map(linear, mine)
            widths = [len(self._kept) * heads.channels.shape[1] for heads in mine]
            if len(roles) > 1:
                pieces = self._emit(aten.split_with_sizes.default, result, widths, -1)
                parts = [self._emit(operator.getitem, pieces, place) for place in range(len(roles))]
            else:
                parts = [result]
            for role, heads, part in zip(roles, mine, parts, strict=True):
                made[role] = self._laid_out(part, heads)
        return iter([made[role] for role in range(3)])

    def _map(self, linear: fx.Node, mine: list[Heads]) -> fx.Node:
        """The rows of a map that the heads left are cut from, one part after the other, with what they were multiplied by."""
        held = weights_of(self._gm, linear)
        assert held is not None
        weight, bias = held
        rows = [(heads.channels[self._kept].flatten(), heads.scale) for heads in mine]
        parts = [
            self._constant(f"{linear.name}_weight", torch.cat([scale * weight[at] for at, scale in rows]))
        ]
        if bias is not None:
            shift = torch.cat([scale * bias[at] for at, scale in rows])
            parts.append(self._constant(f"{linear.name}_bias", shift))
        return self._emit(aten.linear.default, linear.args[0], *parts)

    def _laid_out(self, part: fx.Node, heads: Heads) -> fx.Node:
        rows = [heads.steps, heads.batch] if heads.steps_first else [heads.batch, heads.steps]
        sizes = self._sizes.all([*rows, len(self._kept), heads.channels.shape[1]])
        apart = self._emit(aten.reshape.default, part, sizes)
        return self._emit(aten.permute.default, apart, [1, 2, 0, 3] if heads.steps_first else [0, 2, 1, 3])

    def _mask(self, mask: Any, flat: bool) -> Any:
        """A mask of scores (B, H, T, T), or (B H, T, T) if `flat`, for those of the heads left: one for all heads if it can be."""
        query = self._attention.heads[0]
        shape = shape_of(mask)
        if len(shape) < 3 or shape[-3] == 1:
            return mask
        front = query.batch if flat else shape[0] if len(shape) == 4 else sympy.Integer(1)
        sizes = [front, sympy.Integer(len(query.channels)), *shape[-2:]]
        same = self._same_for_all(mask, sizes)
        if same is not None:
            return same
        apart = self._emit(aten.reshape.default, mask, self._sizes.all(sizes))
        return self._emit(aten.index_select.default, apart, 1, self._constant_ids())

    def _constant_ids(self) -> fx.Node:
        ids = torch.tensor(self._kept)
        self.added += ids.nbytes
        return add_constant(self._gm, f"{self._attention.name}_heads", ids)

    def _same_for_all(self, mask: fx.Node, sizes: list[sympy.Expr]) -> fx.Node | None:
        """What a mask was before it was repeated for each head, as (B, 1, T, T)."""
        chain: list[fx.Node] = []
        node: Any = mask
        while isinstance(node, fx.Node) and node.target in MOVES and isinstance(node.args[0], fx.Node):
            chain.insert(0, node)
            node = node.args[0]
            if not isinstance(node.meta.get("val"), Tensor):
                return None
            index = moved_index(node, chain)
            if index is None:
                return None
            apart = index.reshape(-1, int(sizes[1]), *index.shape[-2:])
            one = apart[:, 0]
            if bool((apart == one[:, None]).all()) and torch.equal(one.flatten(), torch.arange(one.numel())):
                whole = [sizes[0], sympy.Integer(1), *sizes[2:]]
                if sympy.prod(shape_of(node)) == sympy.prod(whole):
                    return self._emit(aten.reshape.default, node, self._sizes.all(whole))
        return None
