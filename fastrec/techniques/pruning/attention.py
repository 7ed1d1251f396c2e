"""Attention by several heads, from the maps that its queries, keys and values are cut from to the map that reads all heads.

    y = W_o [h_1 ... h_H] + b_o        h_i = softmax(c q_i k_i^T, with masks) v_i        q, k, v (B, H, T, d) of W_q x, W_k z, W_v z

It is found by data flow: as `scaled_dot_product_attention`, or as two products with a softmax of numbers, sums and masks between
them; heads may be cut in any way by views (`fusion.heads`), of one map or of three, with rows (B, T) or (T, B).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from ...graph import constant, is_call, value
from ...places import named
from ..fusion.chains import is_scale
from ..fusion.heads import Heads, attention_settings, heads_of, moved_index, weights_of
from ..fusion.positions import MOVES
from ..fusion.sizes import shape_of, writable

__all__ = ["Attention", "Step", "attentions"]

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SOFTMAXES = (aten.softmax.int, aten._softmax.default)
_VIEWS = (aten.view.default, aten.reshape.default)
_FILLS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
_CHOICES = (aten.where.self, aten.where.ScalarOther)
_ROLES = ("queries", "keys", "values")


class Left(Exception):
    """Why an attention stays as it is."""


@dataclass(frozen=True)
class Step:
    """What is done to scores on their way to the softmax: a call, its arguments given scores and perhaps a tensor beside them.

    `flat` says that scores are (B H, T, T) there.
    """

    target: Any
    tensor: fx.Node | None
    arguments: Callable[[Any, Any], tuple[Any, ...]]
    flat: bool


@dataclass(frozen=True, eq=False)
class Attention:
    """Queries, keys and values that are `heads`, and the map `out` that alone reads their results, `columns` (H, d_v) of it each head's.

    `name` is that of the call or of the softmax, `node` gives the results. `steps` are those of scores; None where `node` computes
    attention itself. `steps_first` says that rows of `out` are (T, B).
    """

    name: str
    node: fx.Node
    out: fx.Node
    heads: tuple[Heads, Heads, Heads]
    columns: Tensor
    steps_first: bool
    steps: tuple[Step, ...] | None


def attentions(gm: fx.GraphModule) -> tuple[list[Attention], dict[str, str]]:
    """Those of a graph without no-ops, in its order, and by name why others stay."""
    found, reasons = [], {}
    for node in gm.graph.nodes:
        if is_call(node, _ATTENTION, *_SOFTMAXES):
            try:
                made = _of_call(gm, node) if is_call(node, _ATTENTION) else _of_softmax(gm, node)
            except Left as left:
                reasons[node.name] = str(left)
                continue
            if made is not None:
                found.append(made)
    outs = {one.out for one in found}
    for one in found:
        if any(heads.linear in outs for heads in one.heads):
            reasons[one.name] = "the map behind another attention makes its heads"
    return [one for one in found if one.name not in reasons], reasons


def _of_call(gm: fx.GraphModule, node: fx.Node) -> Attention:
    _, dropout, _ = attention_settings(node)
    if dropout or set(node.kwargs) - {"scale"}:
        raise Left("it drops out, or its queries share keys")
    return _attention(gm, node.name, node, list(node.args[:3]), transposed=False, steps=None, readers={node})


def _of_softmax(gm: fx.GraphModule, softmax: fx.Node) -> Attention | None:
    """Softmax over keys between two products; None for any other."""
    last = softmax
    while len(last.users) == 1 and is_call(user := next(iter(last.users)), *_VIEWS):
        last = user
    products = [user for user in last.users if is_call(user, *_PRODUCTS) and user.args[0] is last]
    scores = _scores(softmax)
    if not products or scores is None:
        return None
    if len(last.users) != 1:
        raise Left("its weights are read elsewhere as well")
    if softmax.args[1] not in (-1, value(softmax).ndim - 1):
        raise Left("its softmax is not over keys")
    product, steps, query, keys = scores
    readers = {product, products[0]}
    matrices = [query, keys, products[0].args[1]]
    return _attention(gm, softmax.name, products[0], matrices, transposed=True, steps=steps, readers=readers)


def _scores(softmax: fx.Node) -> tuple[fx.Node, tuple[Step, ...], Any, Any] | None:
    """The product that a softmax comes from, what is done to it on the way, and its two operands; None where there is none."""
    node: Any = softmax.args[0]
    steps: list[Step] = []
    while isinstance(node, fx.Node) and len(node.users) == 1:
        args: tuple[Any, ...] = node.args
        if is_call(node, *_PRODUCTS):
            return node, tuple(steps[::-1]), args[0], args[1]
        flat = value(node).ndim == 3
        if is_call(node, aten.baddbmm.default) and not node.kwargs:
            steps.append(Step(aten.add.Tensor, _tensor(args[0]), lambda scores, other: (scores, other), flat))
            return node, tuple(steps[::-1]), args[1], args[2]
        if not is_call(node, *_VIEWS):
            found = _step(node)
            if found is None:
                return None
            steps.append(replace(found[0], flat=flat))
            node = found[1]
        else:
            node = args[0]
    return None


def _step(node: fx.Node) -> tuple[Step, Any] | None:
    """What a call does to scores, and the scores before it."""
    args: tuple[Any, ...] = node.args
    if is_scale(node):
        return Step(node.target, None, lambda scores, _: (scores, args[1]), False), args[0]
    if is_call(node, *_FILLS) and isinstance(args[1], fx.Node):
        return Step(node.target, args[1], lambda scores, mask: (scores, mask, args[2]), False), args[0]
    if is_call(node, *_CHOICES) and _is_number(args[2]):
        choose = Step(node.target, _tensor(args[0]), lambda scores, mask: (mask, scores, args[2]), False)
        return choose, args[1]
    if is_call(node, aten.add.Tensor) and not node.kwargs and isinstance(args[1], fx.Node):
        sides = [side for side in args if _leads_to_product(side)]
        if len(sides) == 1:
            (other,) = (side for side in args if side is not sides[0])
            return Step(node.target, other, lambda scores, mask: (scores, mask), False), sides[0]
    return None


def _tensor(node: Any) -> fx.Node:
    assert isinstance(node, fx.Node)
    return node


def _is_number(given: Any) -> bool:
    """Whether it is a number, or a tensor of one element."""
    return not isinstance(given, fx.Node) or value(given).numel() == 1


def _leads_to_product(node: Any) -> bool:
    """Whether scores come out of this, seen through what may be done to them."""
    while not is_call(node, *_PRODUCTS, aten.baddbmm.default):
        if is_call(node, aten.add.Tensor):
            return any(_leads_to_product(side) for side in node.args)
        if not is_scale(node) and not is_call(node, *_VIEWS, *_FILLS, *_CHOICES):
            return False
        node = node.args[1 if is_call(node, *_CHOICES) else 0]
    return True


def _attention(
    gm: fx.GraphModule,
    name: str,
    node: fx.Node,
    matrices: list[Any],
    *,
    transposed: bool,
    steps: tuple[Step, ...] | None,
    readers: set[fx.Node],
) -> Attention:
    """The attention of these queries, keys and values, read by `readers` alone."""
    found: list[Heads] = []
    for place, (role, matrix) in enumerate(zip(_ROLES, matrices, strict=True)):
        heads = heads_of(gm, matrix, transposed and place == 1)
        if heads is None:
            raise Left(f"its {role} are not plain heads of one linear map by a constant weight")
        if sympy.prod(shape_of(heads.linear)[:-1]) != heads.batch * heads.steps:
            raise Left(f"its {role} are a part of what a linear map gives")
        if value(heads.linear).dtype is not torch.float32:
            raise Left("it is not in float32")
        found.append(heads)
    query, keys, values = found
    if not len(query.channels) == len(keys.channels) == len(values.channels):
        raise Left("several heads of its queries share one of its keys or values")
    if not query.batch == keys.batch == values.batch:
        raise Left("its queries are of other rows than its keys or values")
    if len(query.channels) == 1:
        raise Left("it has one head")
    _sole(matrices, found, readers)
    out, moves = _reader(node)
    if weights_of(gm, out) is None:
        raise Left("the map that reads its heads has no constant weight")
    if constant(gm, out.args[1]).dtype is not torch.float32:  # type: ignore[union-attr]  # `weights_of` has seen it
        raise Left("it is not in float32")
    columns, steps_first = _columns(node, moves, query, values.channels.shape[1])
    return Attention(name, node, out, (query, keys, values), columns, steps_first, steps)


def _sole(matrices: list[Any], found: list[Heads], readers: set[fx.Node]) -> None:
    """Raises `Left` where the maps, or what lies between them and the heads, are read by anything else."""
    inside: set[fx.Node] = set()
    for matrix, heads in zip(matrices, found, strict=True):
        while matrix is not heads.linear:
            inside.add(matrix)
            matrix = matrix.args[0]
        inside.add(matrix)
    for one in inside:
        for user in one.users:
            if user not in inside | readers and not is_call(user, aten.sym_size.int):
                raise Left(f"{named(one)}, which its heads are cut from, is read by {named(user)} as well")


def _reader(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """The linear map that alone reads an attention's result, and the views of it in between."""
    moves: list[fx.Node] = []
    while len(node.users) == 1:
        user = next(iter(node.users))
        if is_call(user, aten.linear.default) and user.args[0] is node:
            return user, moves
        if not is_call(user, *MOVES):
            break
        moves.append(user)
        node = user
    raise Left("no linear map alone reads its heads")


def _columns(node: fx.Node, moves: list[fx.Node], query: Heads, width: int) -> tuple[Tensor, bool]:
    """Which columns (H, d_v) of what the map reads are each head's, and whether its rows are (T, B)."""
    last = moves[-1] if moves else node
    index = moved_index(node, moves)
    heads, steps = len(query.channels), query.steps
    sizes = [query.batch, sympy.Integer(heads), sympy.Integer(steps), sympy.Integer(width)]
    if (
        index is None
        or not writable([query.batch, *shape_of(last)])
        or sympy.prod(shape_of(node)) != sympy.prod(sizes)
    ):
        raise Left("how its heads lie side by side is not known")
    index = index.reshape(-1, index.shape[-1])
    channel = index % width + index // (width * steps) % heads * width
    rows = index // (width * steps * heads) * steps + index // width % steps
    count = len(rows) // steps
    if index.shape[1] != heads * width or bool((rows != rows[:, :1]).any() or (channel != channel[:1]).any()):
        raise Left("the map behind it does not read all heads of one position side by side")
    plain = torch.arange(len(rows))
    for steps_first, order in ((False, plain), (True, plain.view(count, steps).t().flatten())):
        if torch.equal(rows[:, 0], order):
            return channel[0].argsort().view(heads, width), steps_first
    raise Left("the map behind it reads its positions in another order, or some of them")
