"""What is the same in every row is computed at one row.

    f(expand(x_1), ..., expand(x_k), c)  =  expand(f(x_1, ..., x_k, c))        x_i (1, ...), expanded to (N, ...)
    cat([expand(x_1), expand(x_2), y])   =  cat([expand(cat([x_1, x_2])), y])

for f that acts row by row, and c constants. Applied to whole stretches of the graph at once: everything that comes
from the request and from constants alone is computed at N = 1, sizes read off the batch included, and expanded
only where it meets the candidates. `repeat` along the rows is such an expansion as well.

When it does not apply: to a graph that writes in place; to operators that act along the rows (a softmax or a sum over
the batch, a selection of rows), that use the number of rows as a number, or whose rows are not one dimension.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import emit, evaluate, is_call, operator_name, value
from ..base import Change
from .purity import is_pure, writes

__all__ = ["compute_once", "dimension", "row_axes", "spread_of"]

aten = torch.ops.aten

_RESHAPES = frozenset(("view", "reshape", "flatten", "unflatten"))
# Sizes of the batch are these operators' shapes; anywhere else the number of rows is a number.
_SIZED = _RESHAPES | {
    "expand",
    "repeat",
    "zeros",
    "ones",
    "full",
    "new_zeros",
    "new_ones",
    "new_full",
    "sym_size",
}
_FILLS = frozenset(
    ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
)
_MOVES = frozenset(("permute", "transpose", "unsqueeze", "squeeze", "stack", "select", "unbind", "expand"))
_BAGS = frozenset(("embedding_bag", "_embedding_bag"))
_AXES = frozenset(("dim", "dims", "axis", "dim0", "dim1"))


def compute_once(gm: fx.GraphModule) -> list[Change]:
    """Computes what the request alone decides at one row; edits `gm` in place. No constants are added."""
    if writes(gm):
        return []
    changes: list[Change] = []
    for symbol in _symbols(gm):
        changes += _Colouring(gm, symbol).rewrite()
    return [*changes, *_neighbours(gm)]


def spread_of(node: Any) -> tuple[fx.Node, int, fx.Node] | None:
    """`(x, axis, count)` where the node is x, of size 1 along `axis`, repeated `count` times there; else None."""
    if is_call(node, aten.expand.default, aten.repeat.default):
        source, sizes = node.args[0], node.args[1]
    else:
        return None
    if not isinstance(source, fx.Node) or not isinstance(sizes, (list, tuple)):
        return None
    before, after = value(source).shape, value(node).shape
    if len(before) != len(after):
        return None
    grown = [k for k, size in enumerate(after) if isinstance(size, torch.SymInt) and _is_one(before[k])]
    if len(grown) != 1 or not isinstance(sizes[grown[0]], fx.Node):
        return None
    rest = [k for k in range(len(after)) if k != grown[0]]
    if any(str(before[k]) != str(after[k]) for k in rest):
        return None
    return source, grown[0], sizes[grown[0]]


def dimension(node: fx.Node, place: int, name: str = "dim", default: int = 0) -> int:
    """The dimension that a call names, by position or by name."""
    given = node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
    assert isinstance(given, int)
    return given


def row_axes(shape: torch.Size, symbol: Any) -> list[tuple[int, int]] | None:
    """The dimensions that count rows, each with how many entries a row has there; None for other dependencies."""
    found: list[tuple[int, int]] = []
    for axis, size in enumerate(shape):
        if not isinstance(size, torch.SymInt):
            continue
        expression = size.node.expr
        if symbol not in expression.free_symbols:
            return None
        times = expression / symbol
        if not times.is_Integer:
            return None
        found.append((axis, int(times)))
    return found


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _expression(size: Any) -> Any:
    return size.node.expr


def _symbols(gm: fx.GraphModule) -> list[Any]:
    """The sizes that something is repeated to."""
    found: dict[Any, None] = {}
    for node in gm.graph.nodes:
        spread = spread_of(node)
        if spread is not None:
            expression = _expression(value(node).shape[spread[1]])
            if expression.is_Symbol:
                found[expression] = None
    return list(found)


@dataclass
class _Repeated:
    """A node equal in all rows: its value at one row, and where its rows are; for several results, of each."""

    once: Any
    places: list[_Place]
    count: fx.Node | None
    given: bool = False


@dataclass(frozen=True)
class _Place:
    """Rows are counted by dimension `axis`, of `times` entries per row, `outer` of them in front of the rows."""

    axis: int
    times: int = 1
    outer: int = 1


class _Colouring:
    """Finds, for one size, the nodes equal in all rows, computing each at one row as it goes."""

    def __init__(self, gm: fx.GraphModule, symbol: Any) -> None:
        self._gm, self._symbol = gm, symbol
        self._constant: set[fx.Node] = set()
        self._repeated: dict[fx.Node, _Repeated] = {}
        self._fills: dict[fx.Node, _Repeated] = {}
        self._positions: dict[fx.Node, fx.Node] = {}

    def rewrite(self) -> list[Change]:
        for node in list(self._gm.graph.nodes):
            if node.op == "get_attr":
                self._constant.add(node)
            elif node.op == "call_function":
                self._visit(node)
        return [change for node in list(self._repeated) if (change := self._settle(node)) is not None]

    def _visit(self, node: fx.Node) -> None:
        spread = spread_of(node)
        if spread is not None and _expression(value(node).shape[spread[1]]) == self._symbol:
            source, axis, count = spread
            if row_axes(value(source).shape, self._symbol) == []:
                given = is_call(node, aten.expand.default)
                self._repeated[node] = _Repeated(source, [_Place(axis)], count, given)
                return
        if not is_pure(node):
            return
        tensors = [arg for arg in node.all_input_nodes if not self._is_size(arg)]
        sizes = [arg for arg in node.all_input_nodes if self._is_size(arg)]
        name = operator_name(node)
        if self._is_size(node):
            return
        if all(arg in self._constant for arg in tensors) and not any(self._grows(arg) for arg in sizes):
            self._constant.add(node)
            return
        if sizes and any(self._grows(arg) for arg in sizes) and name not in _SIZED:
            if name == "arange" and not tensors:
                self._at_one_row(node, self._positions)
            return
        if not tensors and name not in _FILLS:
            return
        known = self._repeated.keys() | self._fills.keys() | self._constant
        offsets = [arg for arg in tensors if arg in self._positions]
        if any(arg not in known and arg not in self._positions for arg in tensors):
            return
        if offsets and not (name in _BAGS and offsets == [node.args[2]]):
            return
        if not self._by_rows(node, name):
            return
        self._compute(node, name)

    def _is_size(self, node: fx.Node) -> bool:
        return isinstance(node.meta.get("val"), (int, torch.SymInt))

    def _grows(self, node: fx.Node) -> bool:
        found = node.meta["val"]
        return isinstance(found, torch.SymInt) and self._symbol in found.node.expr.free_symbols

    def _place_of(self, node: fx.Node) -> _Place | None:
        held = self._repeated.get(node) or self._fills.get(node)
        return held.places[0] if held is not None and len(held.places) == 1 else None

    def _by_rows(self, node: fx.Node, name: str) -> bool:
        """Whether each row of the result depends on the same row of the arguments alone."""
        if name == "repeat" and any(isinstance(n, (fx.Node, int)) and n != 1 for n in node.args[1]):  # type: ignore[union-attr]  # an argument of a node is of any type
            return False
        if name in _MOVES | _RESHAPES or not isinstance(node.target, torch._ops.OpOverload):
            return True
        given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | dict(
            node.kwargs
        )
        if given.get("training") is True:
            return False
        sources = [(arg, p.axis) for arg in node.all_input_nodes if (p := self._place_of(arg)) is not None]
        for argument in _AXES & given.keys():
            dims = given[argument]
            for dim in dims if isinstance(dims, (list, tuple)) else [dims]:
                if isinstance(dim, int) and any(dim % value(arg).ndim == axis for arg, axis in sources):
                    return False
        return True

    def _places(self, node: fx.Node, name: str) -> list[_Place] | None:
        """Where the rows of the node's results are; None where they are not one dimension of each."""
        found = node.meta["val"]
        if node.target is operator.getitem:
            source, index = node.args
            whole = self._repeated.get(source) or self._fills.get(source)  # type: ignore[arg-type]  # an argument of a node is of any type
            fits = whole is not None and isinstance(index, int) and index < len(whole.places)
            return [whole.places[index]] if whole is not None and fits else None  # type: ignore[index]  # an argument of a node is of any type
        parts = found if isinstance(found, (tuple, list)) else [found]
        # Of a bag's results only the first has rows; the others are never read.
        places = [self._place(node, part) for part in (parts[:1] if name in _BAGS else parts)]
        known = [place for place in places if place is not None]
        return known if len(known) == len(places) else None

    def _place(self, node: fx.Node, result: Any) -> _Place | None:
        axes = row_axes(result.shape, self._symbol) if isinstance(result, Tensor) else None
        if axes is None or len(axes) != 1:
            return None
        axis, times = axes[0]
        given = [place for arg in node.all_input_nodes if (place := self._place_of(arg)) is not None]
        if operator_name(node) in _RESHAPES:
            if len(given) != 1:
                return None
            # As many entries stand in front of the rows as before.
            source = node.args[0]
            assert isinstance(source, fx.Node)
            front = math.prod(value(source).shape[: given[0].axis]) * given[0].outer
            lead = math.prod(result.shape[:axis])
            if not isinstance(front, int) or not isinstance(lead, int) or lead == 0 or front % lead:
                return None
            outer = front // lead
            return _Place(axis, times, outer) if times % outer == 0 else None
        if times == 1:
            return _Place(axis)
        merged = {(place.times, place.outer) for place in given if place.times > 1}
        return _Place(axis, *next(iter(merged))) if merged in ({(times, p.outer)} for p in given) else None

    def _compute(self, node: fx.Node, name: str) -> None:
        """Computes the node at one row; leaves it as it is where its rows are not what they should be."""
        places = self._places(node, name)
        made = self._copy(node) if places is not None else None
        if made is None or places is None:
            return
        found = made.meta["val"]
        for result, place in zip(
            found if isinstance(found, (tuple, list)) else [found], places, strict=False
        ):
            if result.shape[place.axis] != place.times:
                self._gm.graph.erase_node(made)
                return
        held = [self._repeated[arg] for arg in node.all_input_nodes if arg in self._repeated]
        home = self._repeated if held else self._fills
        home[node] = _Repeated(made, places, held[0].count if held else None)

    def _copy(self, node: fx.Node) -> fx.Node | None:
        """The same call on one row."""

        def once(arg: fx.Node) -> Any:
            if arg in self._repeated:
                return self._repeated[arg].once
            if arg in self._fills:
                return self._fills[arg].once
            if arg in self._positions:
                return self._positions[arg]
            if self._is_size(arg) and self._grows(arg):
                at_one = arg.meta["val"].node.expr.subs(self._symbol, 1)
                if not at_one.is_Integer:
                    raise _Unknown
                return int(at_one)
            return arg

        try:
            args, kwargs = fx.map_arg((node.args, node.kwargs), once)
        except _Unknown:
            return None
        with self._gm.graph.inserting_before(node):
            made = self._gm.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type]  # an argument of a node is of any type
            try:
                made.meta["val"] = evaluate(self._gm, made)
            except (RuntimeError, ValueError, TypeError, IndexError):
                # Sizes written into the call (a literal in a view) hold at N rows only.
                self._gm.graph.erase_node(made)
                return None
        return made

    def _at_one_row(self, node: fx.Node, home: dict[fx.Node, fx.Node]) -> None:
        made = self._copy(node)
        if made is not None:
            home[node] = made

    def _settle(self, node: fx.Node) -> Change | None:
        """Lets whatever is not equal in all rows read the one row, expanded."""
        held = self._repeated[node]
        if held.given or held.count is None or not isinstance(node.meta["val"], Tensor):
            return None
        readers = [user for user in node.users if user not in self._repeated]
        if not readers:
            return None
        with self._gm.graph.inserting_before(node):
            spread = _expand(self._gm, held.once, held.places[0], held.count)
        for user in readers:
            user.replace_input_with(node, spread)
        return Change("compute once", node.name, "at one row, for all of a request's candidates")


def _neighbours(gm: fx.GraphModule) -> list[Change]:
    """Repeated operands next to each other in a join are joined at one row, and repeated together."""
    changes = []
    for node in list(gm.graph.nodes):
        if not is_call(node, aten.cat.default):
            continue
        axis = dimension(node, 1) % value(node).ndim
        operands: list[Any] = []
        for rows, run in groupby(node.args[0], key=lambda part: _rows_beside(part, axis)):
            parts = list(run)
            if rows is None or len(parts) == 1:
                operands += parts
                continue
            spreads = [spread for part in parts if (spread := spread_of(part)) is not None]
            with gm.graph.inserting_before(node):
                joined = emit(gm, aten.cat.default, ([source for source, _, _ in spreads], axis))
                operands.append(_expand(gm, joined, _Place(rows), spreads[0][2]))
        if len(operands) < len(node.args[0]):
            changes.append(
                Change("compute once", node.name, f"{len(node.args[0])} operands are {len(operands)}")
            )
            node.args = (operands, axis)
    return changes


def _rows_beside(part: Any, axis: int) -> int | None:
    """The dimension along which an operand is repeated, where that is not the one it is joined along."""
    spread = spread_of(part)
    return None if spread is None or spread[1] == axis else spread[1]


class _Unknown(Exception):
    """A size that is not known at one row."""


def _expand(gm: fx.GraphModule, once: fx.Node, place: _Place, count: fx.Node) -> fx.Node:
    """One row repeated; a dimension that holds several entries of a row is opened first."""
    axis, inner = place.axis, place.times // place.outer
    shape: list[Any] = list(value(once).shape)
    if place.times == 1:
        return emit(gm, aten.expand.default, (once, [count if k == axis else n for k, n in enumerate(shape)]))
    before, after = shape[:axis], shape[axis + 1 :]
    opened = emit(gm, aten.reshape.default, (once, [*before, place.outer, 1, inner, *after]))
    spread = emit(gm, aten.expand.default, (opened, [*before, place.outer, count, inner, *after]))
    return emit(gm, aten.reshape.default, (spread, [*before, -1, *after]))
