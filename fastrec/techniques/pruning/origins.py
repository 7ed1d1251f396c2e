"""Which columns of which inputs the values of a graph come from.

    x (N, K) an input      ->   column k of x[:, [5, 2]] + c comes from {(x, 5)}, {(x, 2)}

Selections, joins, elementwise steps and what keeps the columns of a matrix apart are followed column by column; of anything else
every column comes from all that its arguments come from. Sizes are no values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from ...graph import constant, is_call, operator_name
from ...inputs import Feature
from ..fusion.join import picks
from ..fusion.once import dimension
from ..fusion.pointwise import is_pointwise

__all__ = ["Origin", "Origins", "words_of"]

aten = torch.ops.aten
_NOTHING: frozenset[Any] = frozenset()
_SIZED = frozenset(("sym_size", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"))
_KEEPS = frozenset(
    (
        "view",
        "reshape",
        "flatten",
        "squeeze",
        "unsqueeze",
        "expand",
        "repeat",
        "clone",
        "contiguous",
        "alias",
        "detach",
    )
)

Origin: TypeAlias = frozenset[tuple[int, int | None]]
"""Inputs by their number, with the column of a matrix or None for a whole input."""


class Origins:
    """What every node of a graph comes from; `of` gives it column by column for a matrix, as one for anything else."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._found: dict[fx.Node, tuple[Origin, ...]] = {}
        inputs = 0
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                width = _width(node)
                columns = [None] if width is None else range(width)
                self._found[node] = tuple(frozenset([(inputs, column)]) for column in columns)
                inputs += 1
            else:
                self._found[node] = self._columns(node)

    def of(self, node: fx.Node) -> tuple[Origin, ...]:
        """The origin of each column of a matrix (N, K), K known; of another tensor the origin of all of it."""
        return self._found[node]

    def whole(self, node: fx.Node) -> Origin:
        """The origin of all of it."""
        return _NOTHING.union(*self._found[node])

    def _columns(self, node: fx.Node) -> tuple[Origin, ...]:
        sources = [] if operator_name(node) in _SIZED else node.all_input_nodes
        every = _NOTHING.union(*map(self.whole, sources))
        width = _width(node)
        apart = self._apart(node, width) if every else None
        return apart if apart is not None else (every,) * (width or 1)

    def _apart(self, node: fx.Node, width: int | None) -> tuple[Origin, ...] | None:
        """Column by column, or None where they are not told apart."""
        chosen = picks(self._gm, node) or _indexed(self._gm, node)
        if chosen is not None:
            source, axis, places, _ = chosen
            columns = self.of(source)
            if _width(source) is None or axis != 1:
                return columns if len(columns) == (width or 1) else None
            return tuple(columns[place] for place in places) if len(places) == (width or 1) else None
        if width is None:
            return None
        if operator_name(node) in ("cat", "concat", "stack") and dimension(node, 1) % 2 == 1:
            parts: Any = node.args[0]
            joined = [column for part in parts for column in self.of(part)]
            return tuple(joined) if len(joined) == width else None
        if is_pointwise(node):
            # Each column of an argument meets one column of the result, or its only one meets all.
            sources = [source for source in node.all_input_nodes if self.whole(source)]
            if all(_width(source) in (1, width) for source in sources):
                spread = [self.of(source) * (width // len(self.of(source))) for source in sources]
                return tuple(_NOTHING.union(*columns) for columns in zip(*spread, strict=True))
        rows = operator_name(node) == "slice" and dimension(node, 1) == 0
        if rows or operator_name(node) in _KEEPS:
            kept = node.args[0]
            if isinstance(kept, fx.Node) and _width(kept) == width:
                return self.of(kept)
        return None


def words_of(origin: Origin, features: Sequence[Feature]) -> str:
    """An origin as its inputs are called.

    Example:
        >>> x = Feature("x", torch.int64, (8, 5))
        >>> words_of(frozenset([(0, 3)]), [x]), words_of(frozenset([(0, 1), (0, 2), (0, 4)]), [x])
        ('x[:, 3]', 'x[:, 1:3] and x[:, 4]')
    """
    said = []
    for number, feature in enumerate(features):
        columns = sorted(-1 if column is None else column for where, column in origin if where == number)
        if columns == [-1] or (columns and columns == list(range(feature.shape[1]))):
            said.append(feature.name)
            continue
        for _, run in groupby(enumerate(columns), key=lambda one: one[1] - one[0]):
            places = [column for _, column in run]
            span = str(places[0]) if len(places) == 1 else f"{places[0]}:{places[-1] + 1}"
            said.append(f"{feature.name}[:, {span}]")
    return " and ".join(said)


def _width(node: fx.Node) -> int | None:
    """The columns of a matrix, where their number is known."""
    found = node.meta.get("val")
    if not isinstance(found, Tensor) or found.ndim != 2:
        return None
    size = found.shape[1]
    return size if isinstance(size, int) and size else None


def _indexed(gm: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, int, list[int], bool] | None:
    """x[:, [3, 5]], as `picks` gives a selection."""
    if not is_call(node, aten.index.Tensor):
        return None
    source, chosen = node.args[:2]
    if not isinstance(source, fx.Node) or not isinstance(chosen, (list, tuple)) or len(chosen) != 2:
        return None
    held: Any = chosen[1]
    if is_call(held, aten.lift_fresh_copy.default):
        held = held.args[0]  # a list in the model's code
    index = constant(gm, held)
    if chosen[0] is not None or index is None or index.ndim != 1 or index.dtype is not torch.int64:
        return None
    width = _width(source)
    return None if width is None else (source, 1, [int(k) % width for k in index], False)
