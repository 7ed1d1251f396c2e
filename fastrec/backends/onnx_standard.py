"""A graph in operators that every ONNX runtime has, for a file that leaves this machine.

    rows of int8      codes * scale + offset             the numbers of each row beside its codes, two gathers
    rows of int4      low = b - 16 floor(b / 16), high = floor(b / 16)       b a byte, in float32, where both are exact
    bfloat16          computed in float32 of the rounded numbers, and the result rounded
    bags              rows added to the row of their bag: ONNX has no bags, and a loop over rows is slow

Operators of ours are written out; the others are left as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from ..errors import BackendError
from ..graph import add_constant, constant, copy_graph, emit, is_call, operator_name, sweep, value
from ..ops import INT4, INT8
from ..places import named
from .onnx_forms import for_onnx_runtime
from .row_sums import has_codes, sums_by_row

__all__ = ["in_standard_operators"]

aten = torch.ops.aten
_Form: TypeAlias = Callable[[fx.GraphModule, fx.Node], fx.Node]
_BAGS = (aten.embedding_bag.default, aten.embedding_bag.padding_idx)
_SUM, _MEAN = 0, 1
_CASTS = ("to", "_to_copy")
_WHO = "onnxruntime"


def in_standard_operators(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph without what ONNX has no operator for; `gm` is not changed.

    Raises `BackendError` for bags that take the largest, and rows of small integers that are computed.
    """
    made = for_onnx_runtime(gm)
    # Rows do not depend on each other there, whatever adds them up.
    made = copy_graph(sums_by_row(made) if has_codes(made) else made)
    tables: dict[str, tuple[fx.Node, ...]] = {}
    for node in list(made.graph.nodes):
        form = _form(node, tables)
        if form is None:
            continue
        with made.graph.inserting_before(node):
            new = form(made, node)
        if is_call(node, *_BAGS):
            for user in list(node.users):
                if user.args[1] != 0:
                    raise BackendError(f"{named(node)} is asked for more than its sums", backend=_WHO)
                user.replace_all_uses_with(new)
                made.graph.erase_node(user)
        else:
            node.replace_all_uses_with(new)
        made.graph.erase_node(node)
    sweep(made)
    return made


def _form(node: fx.Node, tables: dict[str, tuple[fx.Node, ...]]) -> _Form | None:
    """What writes the node out; None where it is left."""
    if is_call(node, INT8, INT4):
        return lambda gm, node: _rows(gm, node, tables)
    if (
        node.op == "call_function"
        and operator_name(node) not in _CASTS
        and any(map(_is_short, _around(node)))
    ):
        return _rounded
    if is_call(node, *_BAGS):
        return _bag
    return None


def _rows(gm: fx.GraphModule, node: fx.Node, tables: dict[str, tuple[fx.Node, ...]]) -> fx.Node:
    """Rows of small integers, by two gathers of constants."""
    source, ids = node.args
    assert isinstance(source, fx.Node)
    name = str(source.target)
    if name not in tables:
        rows = constant(gm, source)
        if rows is None:
            raise BackendError(f"{named(node)} reads rows of small integers that are computed", backend=_WHO)
        kind, tail = (torch.float32, 8) if is_call(node, INT8) else (torch.float16, 4)
        width = rows.shape[1] - tail
        numbers = rows[:, width:].contiguous().view(kind).float()
        parts = {"codes": rows[:, :width].contiguous(), "scales": numbers[:, :1], "offsets": numbers[:, 1:]}
        tables[name] = tuple(
            add_constant(gm, f"{name}_{key}", part.contiguous()) for key, part in parts.items()
        )
    codes, scale, offset = (emit(gm, aten.embedding.default, (part, ids)) for part in tables[name])
    codes = emit(gm, aten.to.dtype, (codes, torch.float32))
    if is_call(node, INT4):
        high = emit(gm, aten.floor.default, (emit(gm, aten.mul.Tensor, (codes, 0.0625)),))
        low = emit(gm, aten.sub.Tensor, (codes, emit(gm, aten.mul.Tensor, (high, 16.0))))
        pairs = emit(gm, aten.stack.default, ([low, high], -1))
        codes = emit(gm, aten.flatten.using_ints, (pairs, -2, -1))
    return emit(gm, aten.add.Tensor, (emit(gm, aten.mul.Tensor, (codes, scale)), offset))


def _around(node: fx.Node) -> tuple[fx.Node, ...]:
    return (node, *node.all_input_nodes)


def _is_short(node: fx.Node) -> bool:
    """Whether the node gives numbers in bfloat16, which runtimes hold and turn into others, and compute with seldom."""
    held = node.meta.get("val")
    return isinstance(held, Tensor) and held.dtype is torch.bfloat16


def _rounded(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The call with its numbers in float32, its result rounded once, as the kernels of bfloat16 do."""

    def wide(arg: fx.Node) -> fx.Node:
        return emit(gm, aten.to.dtype, (arg, torch.float32)) if _is_short(arg) else arg

    args, kwargs = fx.map_arg((node.args, node.kwargs), wide)
    made = emit(gm, node.target, args, kwargs)
    return emit(gm, aten.to.dtype, (made, torch.bfloat16)) if _is_short(node) else made


def _bag(gm: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The sums or means of bags: each row goes to the bag whose start is the last one at or before it."""
    given: list[Any] = [*node.args, *[None] * (9 - len(node.args))]
    table, ids, starts, _, mode, _, weights, ends, padding = given
    if mode not in (_SUM, _MEAN):
        raise BackendError(
            f"{named(node)} takes the largest of a bag: sums and means can be written", backend=_WHO
        )

    def call(target: Any, *args: Any) -> fx.Node:
        return emit(gm, target, args)

    total = call(aten.sym_size.int, ids, 0)
    bags = call(aten.sym_size.int, starts, 0)
    if ends:
        starts, bags = call(aten.slice.Tensor, starts, 0, 0, -1), call(operator.sub, bags, 1)
    # One place more than rows, for empty bags at the end.
    marks = call(aten.new_zeros.default, starts, [call(operator.add, total, 1)])
    ones = call(aten.ones_like.default, starts)
    steps = call(aten.cumsum.default, call(aten.scatter_add.default, marks, 0, starts, ones), 0)
    numbers = call(aten.sub.Tensor, call(aten.slice.Tensor, steps, 0, 0, -1), 1)
    places = call(aten.unsqueeze.default, call(aten.to.dtype, numbers, torch.int64), 1)
    rows = call(aten.embedding.default, table, ids)
    if weights is not None:
        rows = call(aten.mul.Tensor, rows, call(aten.unsqueeze.default, weights, 1))
    real = None
    if isinstance(padding, int) and padding >= 0:
        real = call(
            aten.unsqueeze.default,
            call(aten.to.dtype, call(aten.ne.Scalar, ids, padding), value(rows).dtype),
            1,
        )
        rows = call(aten.mul.Tensor, rows, real)

    def added(parts: fx.Node) -> fx.Node:
        width = value(parts).shape[1]
        empty = call(aten.new_zeros.default, parts, [bags, width])
        return call(
            aten.scatter_add.default, empty, 0, call(aten.expand.default, places, [total, width]), parts
        )

    sums = added(rows)
    if mode == _SUM:
        return sums
    counts = added(
        real if real is not None else call(aten.ones_like.default, call(aten.slice.Tensor, rows, 1, 0, 1))
    )
    return call(aten.div.Tensor, sums, call(aten.clamp_min.default, counts, 1.0))
