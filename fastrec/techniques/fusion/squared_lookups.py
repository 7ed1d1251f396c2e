"""The squared length of a looked-up row is looked up.

    sum_f |E_f[i_f]|^2   =   sum_f n_f[i_f]          n_f = |E_f|^2, row by row (V_f, 1)
    sum_k (a_k - sum_f E_f[i_f, k]^2)   =   sum_k a_k  -  sum_f n_f[i_f]

So of a factorisation machine's second order, 1/2 sum_k ((sum_f v_fk)^2 - sum_f v_fk^2), the second half is one number for
each field, which lies beside the row it belongs to. N F d squares are neither made nor added up; a number for each row
of a table is added to the model. Norms are computed in float64.

When it does not apply: to squares that have another reader, or are not added up whole; to tables that are written
into; to rows narrower than four.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ...graph import add_constant, constant, emit, is_call, operator_name, value
from ..base import Change
from .once import dimension
from .purity import writes

__all__ = ["look_up_norms"]

aten = torch.ops.aten
_NARROW = 4
_BLOCK = 1 << 14


def look_up_norms(gm: fx.GraphModule) -> list[Change]:
    """Replaces total sums of squared rows by lookups; edits `gm` in place. Adds a number for each row of the tables."""
    if writes(gm):
        return []
    changes = []
    for node in list(gm.graph.nodes):
        if not is_call(node, aten.sum.dim_IntList) or not _sums_rows(node):
            continue
        if not _leads_to_squares(gm, node.args[0]):
            continue
        total = _Total(gm)
        with gm.graph.inserting_before(node):
            made = total.of(node.args[0])
            if len(node.args) > 2 and node.args[2]:
                for _ in range(value(node).ndim - 1):
                    made = emit(gm, aten.unsqueeze.default, (made, -1))
        node.replace_all_uses_with(made)
        gm.graph.erase_node(node)
        detail = f"squared lengths of the rows of {total.tables} tables"
        changes.append(Change("look up norms", node.name, detail, total.added))
    return changes


def _sums_rows(node: fx.Node) -> bool:
    """Whether all that a batch's row holds is added up, to one number of the same type."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or node.kwargs or len(node.args) not in (2, 3):
        return False
    return _away(node) == set(range(1, value(source).ndim)) != set()


def _away(node: fx.Node) -> set[int]:
    """The dimensions that a sum adds up."""
    args: tuple[Any, ...] = node.args
    source, dims = args[:2]
    return {k % value(source).ndim for k in dims} if isinstance(dims, (list, tuple)) else set()


class _Total:
    """Writes sums (N,) over all but the rows of a value, those of squared lookups as lookups."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._held: dict[fx.Node, fx.Node] = {}
        self.added = 0

    @property
    def tables(self) -> int:
        """How many tables squared lengths were made of."""
        return len(self._held)

    def of(self, node: Any) -> fx.Node:
        """The total (N,) of a node (N, ...)."""
        gm = self._gm
        if not _leads_to_squares(gm, node):
            return emit(gm, aten.sum.dim_IntList, (node, [*range(1, value(node).ndim)]))
        squared = _squared(node)
        if squared is not None:
            return emit(gm, aten.sum.dim_IntList, (self._norms(squared), [1]))
        if _inner_sum(node):
            return self.of(node.args[0])
        parts = [self.of(arg) if isinstance(arg, fx.Node) else arg for arg in node.args]
        return emit(gm, node.target, tuple(parts))

    def _norms(self, x: fx.Node) -> fx.Node:
        """The squared lengths (N, k) of the vectors of x, (N, d) or (N, k, d)."""
        gm, name = self._gm, operator_name(x)
        if name in ("stack", "cat", "concat"):
            operands: Any = x.args[0]
            return emit(gm, aten.cat.default, ([self._norms(operand) for operand in operands], 1))
        if name == "unsqueeze":
            return self._norms(x.args[0])  # type: ignore[arg-type]  # as _of_lookups has seen
        if name == "expand":
            inner = self._norms(x.args[0])  # type: ignore[arg-type]  # likewise
            sizes: Any = x.args[1]
            return emit(gm, aten.expand.default, (inner, [sizes[0], value(inner).shape[1]]))
        if is_call(x, aten.embedding.default):
            table, ids = x.args[:2]
            found = emit(gm, aten.embedding.default, (self._lengths(table), ids))
            return found if value(x).ndim == 2 else emit(gm, aten.squeeze.dim, (found, 2))
        squares = emit(gm, aten.sum.dim_IntList, (emit(gm, aten.mul.Tensor, (x, x)), [-1]))
        return squares if value(x).ndim == 3 else emit(gm, aten.unsqueeze.default, (squares, 1))

    def _lengths(self, held: Any) -> fx.Node:
        """The constant (V, 1) of a table's squared lengths, one for all its lookups."""
        if held not in self._held:
            table = constant(self._gm, held)
            assert table is not None
            norms = torch.empty(len(table), 1, dtype=table.dtype)
            for start in range(0, len(table), _BLOCK):
                part = table[start : start + _BLOCK].double()
                norms[start : start + _BLOCK, 0] = part.square().sum(1)
            self.added += norms.nbytes
            self._held[held] = add_constant(self._gm, f"{held.target}_norms", norms)
        return self._held[held]


def _alone(node: Any) -> bool:
    return isinstance(node, fx.Node) and len(node.users) == 1


def _squared(node: Any) -> fx.Node | None:
    """What a node is the square of."""
    square = (
        is_call(node, aten.square.default)
        or (is_call(node, aten.mul.Tensor) and node.args[0] is node.args[1])
        or (is_call(node, aten.pow.Tensor_Scalar) and node.args[1] == 2)
    )
    source = node.args[0] if square else None
    return source if isinstance(source, fx.Node) else None


def _linear(node: fx.Node) -> bool:
    """Whether the total of the node is that of its arguments: a sum, a difference, a product with a number."""
    if node.kwargs or len(node.args) != 2:
        return False
    if is_call(node, aten.add.Tensor, aten.sub.Tensor):
        return all(
            isinstance(arg, fx.Node) and [*map(str, value(arg).shape)] == [*map(str, value(node).shape)]
            for arg in node.args
        )
    return is_call(node, aten.mul.Tensor, aten.div.Tensor) and isinstance(node.args[1], (int, float))


def _inner_sum(node: fx.Node) -> bool:
    """Whether the node is a sum that leaves the rows alone."""
    return (
        is_call(node, aten.sum.dim_IntList)
        and not node.kwargs
        and len(node.args) in (2, 3)
        and bool(away := _away(node))
        and 0 not in away
    )


def _leads_to_squares(gm: fx.GraphModule, node: Any) -> bool:
    """Whether the total of the node is made of squared lookups, by calls that nobody else reads."""
    if not _alone(node):
        return False
    squared = _squared(node)
    if squared is not None:
        return _of_lookups(gm, squared)
    if _linear(node):
        return any(_leads_to_squares(gm, arg) for arg in node.args)
    return _inner_sum(node) and _leads_to_squares(gm, node.args[0])


def _of_lookups(gm: fx.GraphModule, x: Any) -> bool:
    """Whether x (N, d) or (N, k, d) is made of vectors of which the most are looked up, each of one id."""
    return isinstance(x, fx.Node) and value(x).shape[-1] >= _NARROW and _looked_up(gm, x) > 0.5


def _looked_up(gm: fx.GraphModule, x: fx.Node) -> float:
    """The share of the vectors of x that are looked up, where they can be told apart; 0 else."""
    name, ndim = operator_name(x), value(x).ndim
    if ndim not in (2, 3) or not isinstance(value(x).shape[-1], int):
        return 0.0
    if name in ("stack", "cat", "concat"):
        if dimension(x, 1) % ndim != 1 or ndim != 3:
            return 0.0
        operands: Any = x.args[0]
        counts = [1 if name == "stack" else value(operand).shape[1] for operand in operands]
        if not all(isinstance(count, int) for count in counts):
            return 0.0
        shares = [_looked_up(gm, operand) for operand in operands]
        return sum(n * share for n, share in zip(counts, shares, strict=True)) / max(sum(counts), 1)
    source = x.args[0] if x.args else None
    if name == "unsqueeze":
        at_one = ndim == 3 and dimension(x, 1) % 3 == 1
        return _looked_up(gm, source) if at_one and isinstance(source, fx.Node) else 0.0
    if name == "expand" and isinstance(source, fx.Node):
        return _looked_up(gm, source) if _repeats_rows(source, x) else 0.0
    if not is_call(x, aten.embedding.default) or x.args[1] is source:
        return 0.0
    table = constant(gm, source)
    fits = (
        table is not None
        and type(table) in (Tensor, nn.Parameter)
        and table.layout == torch.strided
        and table.ndim == 2
        and table.dtype is torch.float32
    )
    return float(fits)


def _repeats_rows(source: fx.Node, x: fx.Node) -> bool:
    before, after = value(source).shape, value(x).shape
    return len(before) == len(after) and before[0] == 1 and [*map(str, before[1:])] == [*map(str, after[1:])]
