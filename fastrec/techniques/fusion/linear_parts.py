"""The argument of a linear map as parts side by side: looked-up rows, what is made of them column by column, and the rest."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...graph import constant, is_call, operator_name, value
from .id_columns import Column, IdReader
from .once import dimension

__all__ = ["LinearPart", "PartReader"]

aten = torch.ops.aten
_FLAT = ("view", "reshape", "flatten")


@dataclass
class LinearPart:
    """Some of the columns of a linear map's argument: those of looked-up rows, or, without a table, of `node`.

    `column` is the id of each row where there is one; else `chain` are the calls from the lookup on, to be made again.
    `times` rows are looked up for one row of the argument.
    """

    node: fx.Node
    width: int
    table: fx.Node | None = None
    column: Column | None = None
    chain: tuple[fx.Node, ...] = ()
    times: float = 1.0


class PartReader:
    """Reads the arguments of linear maps as parts side by side."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._ids = IdReader(gm)

    def parts(self, x: fx.Node) -> list[LinearPart]:
        """The parts of x (..., D) along its last dimension."""
        name, last = operator_name(x), value(x).ndim - 1
        if name in ("cat", "concat") and dimension(x, 1) % (last + 1) == last:
            operands: Any = x.args[0]
            return [part for operand in operands for part in self.parts(operand) if part.width]
        if name in _FLAT and last == 1 and isinstance(x.args[0], fx.Node):
            source = x.args[0]
            before, after = value(source).shape, value(x).shape
            if len(before) == 3 and str(before[0]) == str(after[0]) and isinstance(before[1], int):
                vectors = self._vectors(source)
                if vectors is not None:
                    return vectors
        found = self._looked_up(x)
        return [found or LinearPart(x, int(value(x).shape[-1]))]

    def _vectors(self, x: fx.Node) -> list[LinearPart] | None:
        """The parts of x (n, k, d) laid flat; None where it is none of lookups."""
        name = operator_name(x)
        if name in ("stack", "cat", "concat") and dimension(x, 1) % 3 == 1:
            operands: Any = x.args[0]
            found = []
            for operand in operands:
                inner = self.parts(operand) if name == "stack" else self._vectors(operand)
                found += inner or [LinearPart(operand, math.prod(value(operand).shape[1:]))]
            return found
        if name == "unsqueeze" and dimension(x, 1) % 3 == 1 and isinstance(x.args[0], fx.Node):
            return self.parts(x.args[0])
        if self._table(x) is None:
            return None
        ids, width = x.args[1], int(value(x).shape[2])
        assert isinstance(ids, fx.Node)
        columns = self._ids.read(ids).columns
        if len(columns) != value(x).shape[1]:
            return None
        assert isinstance(x.args[0], fx.Node)
        return [LinearPart(x, width, x.args[0], column) for column in columns]

    def _looked_up(self, x: fx.Node) -> LinearPart | None:
        """The part of a lookup, or of calls on one that treat all its columns alike."""
        table = self._table(x)
        if table is not None:
            node: Any = x.args[1]
            ids = self._ids.read(node)
            # (N, 1) ids give (N, 1, d): their rows are not the argument's own, but the call can be made again.
            column = ids.columns[0] if len(ids.shape) == 1 else None
            return LinearPart(x, int(value(x).shape[-1]), table, column, (x,))
        if x.op != "call_function" or not isinstance(x.args[0], fx.Node):
            return None
        if is_call(x.args[0], aten.embedding_bag.default, aten.embedding_bag.padding_idx):
            return self._bag(x, x.args[0])
        times = self._alike(x, x.args[0])
        inner = self._looked_up(x.args[0]) if times else None
        if inner is None:
            return None
        return replace(inner, node=x, column=None, chain=(*inner.chain, x), times=inner.times * times)

    def _alike(self, x: fx.Node, source: fx.Node) -> int:
        """Rows of the source that the call makes one of, each column like the others; 0 for other calls."""
        if (
            not isinstance(source.meta.get("val"), Tensor)
            or value(x).dtype != value(source).dtype
            or x.kwargs
        ):
            return 0
        name, before, ndim = operator_name(x), value(source).shape, value(x).ndim
        if name in ("sum", "mean") and len(x.args) in (2, 3):
            dims: Any = x.args[1]
            away = {k % len(before) for k in dims} if isinstance(dims, (list, tuple)) else set()
            known = away and all(isinstance(before[k], int) for k in away)
            return math.prod(int(before[k]) for k in away) if known and len(before) - 1 not in away else 0
        if name == "unsqueeze":
            return int(dimension(x, 1) % ndim < ndim - 1)
        return int(name in ("mul", "div") and isinstance(x.args[1], (int, float)))

    def _bag(self, x: fx.Node, bag: fx.Node) -> LinearPart | None:
        """The part of a bag's sums or means, of a known number of ids on average."""
        args: tuple[Any, ...] = (*bag.args, *(None, None, None, False, 0, False, None)[len(bag.args) :])
        table = self._constant(bag)
        if table is None or x.target is not operator.getitem or x.args[1] != 0 or bag.kwargs:
            return None
        if args[4] not in (0, 1) or args[6] is not None or args[1] is table or args[2] is table:
            return None
        ids, bags = value(args[1]).shape, value(x).shape[0]
        if len(ids) != 1:
            return None
        times = _ratio(ids[0], bags)
        return LinearPart(x, int(value(x).shape[1]), table, None, (bag, x), times) if times else None

    def _table(self, x: fx.Node) -> fx.Node | None:
        """The constant table that a lookup reads."""
        return (
            self._constant(x) if is_call(x, aten.embedding.default) and x.args[1] is not x.args[0] else None
        )

    def _constant(self, x: fx.Node) -> fx.Node | None:
        node = x.args[0]
        table = constant(self._gm, node)
        if table is None or type(table) not in (Tensor, nn.Parameter) or table.layout != torch.strided:
            return None
        return node if isinstance(node, fx.Node) and table.ndim == 2 and table.is_floating_point() else None


def _ratio(more: Any, fewer: Any) -> float | None:
    """The ratio of two sizes where it is the same for all batches."""
    one, other = (n.node.expr if isinstance(n, torch.SymInt) else n for n in (more, fewer))
    ratio: Any = one / other if other != 0 else None
    return float(ratio) if isinstance(ratio, float) or getattr(ratio, "is_number", False) else None
