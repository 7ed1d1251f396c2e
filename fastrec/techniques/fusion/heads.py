"""Heads of an attention as channels of the linear map they are cut from, and who else reads it.

A head may be cut in any way by views, and multiplied by numbers: how is read by moving indices through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ...graph import is_call, value
from .chains import is_scale, scale_of
from .linears import linear_weights
from .positions import MOVES
from .sizes import shape_of, writable

__all__ = ["Heads", "Use", "attention_settings", "heads_of", "moved_index", "spared", "weights_of"]

aten = torch.ops.aten
_ROWS = 3  # what stands for a number of rows while indices move
_LARGEST = 1 << 23


@dataclass(frozen=True)
class Heads:
    """Queries, keys or values as channels (H, d_h) of a linear; its rows are (B, T), or (T, B) if `steps_first`; times `scale`."""

    linear: fx.Node
    batch: sympy.Expr
    steps: int
    channels: Tensor
    steps_first: bool
    scale: float


@dataclass(frozen=True)
class Use:
    """A call that reads queries (argument 0), keys (1) or values (2) that are heads of a linear."""

    node: fx.Node
    argument: int
    heads: Heads

    @property
    def place(self) -> int:
        """The place among the call's arguments: a product has its matrix, keys or values, at place 1."""
        return (
            self.argument
            if is_call(self.node, aten.scaled_dot_product_attention.default)
            else min(self.argument, 1)
        )


def attention_settings(attention: fx.Node) -> list[Any]:
    """Mask, dropout, and whether it is causal, of a `scaled_dot_product_attention`."""
    return [*attention.args[3:6], *[None, 0.0, False][len(attention.args) - 3 :]]


def heads_of(gm: fx.GraphModule, matrix: fx.Node, transposed: bool) -> Heads | None:
    """How the rows of `matrix` (..., T, d_h), or its columns, are cut from a linear."""
    chain = [matrix]
    while is_call(chain[-1], *MOVES) or is_scale(chain[-1]):
        first = chain[-1].args[0]
        if not isinstance(first, fx.Node):
            return None
        chain.append(first)
    linear = chain.pop()
    if not is_call(linear, aten.linear.default) or weights_of(gm, linear) is None:
        return None
    if not shape_of(matrix)[-1 if transposed else -2].is_Integer:
        return None
    index = moved_index(linear, chain[::-1])
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
            return Heads(linear, batch, steps, channels[:heads], steps_first, scale_of(chain))
    return None


def moved_index(source: fx.Node, chain: list[fx.Node]) -> Tensor | None:
    """The places of `source` that end up in the last of these views of it, with `_ROWS` for each symbol."""
    shape = [_number(size) for size in shape_of(source)]
    if sympy.prod(shape) > _LARGEST:
        return None
    held: dict[fx.Node, Any] = {source: torch.arange(int(sympy.prod(shape))).view(shape)}
    for node in chain:
        if is_scale(node):
            held[node] = held[node.args[0]]  # type: ignore[index]  # an argument of a node is of any type
            continue
        for argument in node.all_input_nodes:
            if argument not in held:
                size = argument.meta.get("val")
                if not isinstance(size, torch.SymInt):
                    return None
                held[argument] = _number(size.node.expr)
        target = aten.reshape.default if is_call(node, aten.view.default) else node.target
        args, kwargs = fx.map_arg((node.args, node.kwargs), held.__getitem__)
        held[node] = target(*args, **kwargs)  # type: ignore[operator]  # a node's target is called
    found = held[chain[-1] if chain else source]
    return found if isinstance(found, Tensor) else None


def _number(size: sympy.Expr) -> int:
    return int(size.subs(dict.fromkeys(size.free_symbols, _ROWS)))


def spared(linear: fx.Node, uses: list[Use]) -> bool:
    """Whether nothing but these uses reads the linear, save at one of its steps."""
    absorbed = {(use.node, use.place) for use in uses}
    steps = uses[0].heads.steps
    pending: list[list[fx.Node]] = [[linear]]
    while pending:
        path = pending.pop()
        for user in path[-1].users:
            if is_call(user, *MOVES) or is_scale(user):
                pending.append([*path, user])
                continue
            places = [place for place, argument in enumerate(user.args) if argument is path[-1]]
            if places and all((user, place) in absorbed for place in places):
                continue
            index = moved_index(linear, path[1:]) if len(path) > 1 else None
            if index is None:
                return False
            rows = set((index // value(linear).shape[-1]).flatten().tolist())
            if len(rows) * steps * value(linear).shape[-1] > sympy.prod(map(_number, shape_of(linear))):
                return False
    return True


def weights_of(gm: fx.GraphModule, linear: fx.Node) -> tuple[Tensor, Tensor | None] | None:
    """The weight and bias of a linear map, no bias where it is zero; None where they are not constant."""
    held = linear_weights(gm, linear)
    if held is None:
        return None
    weight, bias = held
    return weight, bias if bias is not None and bool(bias.count_nonzero()) else None
