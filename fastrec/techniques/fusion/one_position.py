"""Of a sequence read at one position, only that position is computed (A8 i).

    f(x, y)[:, p]  =  f'(x[:, p], y)        x (B, T, d), f position by position; for an attention x is its query

What is read of each tensor is worked out from the outputs back (`positions`): all of it, or one position where all
its readers read the same one. Nodes of the second kind are computed with one step in place of T, and what they need
of the others is cut out in front of them, so a residual stream is followed on both its paths at once. The last
block of a sequence model is computed at the position that is scored, its keys and values at all positions.

Positions are `x[:, p]`, `x[:, p : p + 1]`, and one per row: `x.gather(1, p.view(-1, 1, 1).expand(-1, -1, d))` and
`x[arange(B), p]`. A causal attention gets the row of its mask. When it does not apply: tensors that are an output or
are read at several positions; dimensions that count rows; graphs that write in place or read strides; where only
views would be spared.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from ...graph import add_constant, emit, is_call, value
from ..base import Change
from .moves import allow_strides, hoist, reads_strides
from .positions import MOVES, NOTHING, Part, Place, Row, arguments, parts_read
from .purity import writes
from .sizes import Sizes, shape_of, writable

__all__ = ["read_one_position"]

aten = torch.ops.aten


def read_one_position(gm: fx.GraphModule) -> list[Change]:
    """Computes sequences only where they are read; edits `gm` in place. Adds rows of causal masks."""
    if writes(gm) or reads_strides(gm):
        return []
    # Of two selections in a row each may be in the way of the other.
    for through in (False, True):
        parts, chosen = _read(gm, through)
        narrow = _worth(gm, parts, chosen)
        if narrow:
            break
    else:
        return []
    _order(gm, narrow)
    surgery = _Surgery(gm)
    changes = []
    for node in list(gm.graph.nodes):
        if node in narrow:
            surgery.narrow(node, narrow[node])
        elif node in chosen and node.args[0] in narrow:
            part = chosen[node]
            count = sum(narrow[other] == part or _same(narrow[other], part) for other in narrow)
            at = "each row's position" if isinstance(part.at, Row) else f"position {part.at}"
            surgery.select(node, part)
            changes.append(
                Change("read one position", node.name, f"{count} operators at {at} of {part.steps}")
            )
    # An attention left without reader would stay: it counts as random, whatever its dropout.
    for node in reversed(gm.graph.nodes):
        if node in narrow and not node.users:
            gm.graph.erase_node(node)
    allow_strides(gm)
    return changes


def _same(part: Part, other: Part) -> bool:
    """Whether two parts are one position, wherever its axis lies."""
    if isinstance(part.at, Row) and isinstance(other.at, Row):
        return part.at.index is other.at.index
    return part.steps == other.steps and part.at == other.at


def _read(gm: fx.GraphModule, through: bool) -> tuple[dict[fx.Node, Part], dict[fx.Node, Part]]:
    """The nodes of which one position is read, and the selections, each with its part (of its argument, these).

    A selection of a selection asks for its own position, or, if it can be seen `through`, for that of its reader.
    """
    read: dict[fx.Node, Part | None] = {}
    chosen: dict[fx.Node, Part] = {}
    for node in reversed(gm.graph.nodes):
        found = arguments(node)
        parts: list[Any] | None = None
        start, wanted = selection(node), read.get(node)
        if wanted is not None and (through or start is None):
            parts = parts_read(node, wanted) if _writable(node) else None
        if parts is None and start is not None:
            chosen[node] = start
            parts = [start, *(None for _ in found[1:])]
        elif parts is None and wanted is not None:
            read[node] = None
        for argument, part in zip(found, parts or [None] * len(found), strict=True):
            if part is NOTHING:
                continue
            if isinstance(part, Part) and not _has_rows(argument, part):
                part = None
            read[argument] = part if read.get(argument, part) == part else None
    return {node: part for node, part in read.items() if part is not None}, chosen


def _worth(
    gm: fx.GraphModule, parts: dict[fx.Node, Part], chosen: dict[fx.Node, Part]
) -> dict[fx.Node, Part]:
    """The nodes that are narrowed: what computes, and what moves the results of those."""
    narrow: dict[fx.Node, Part] = {}
    for node in gm.graph.nodes:
        part = parts.get(node)
        if part is None or node in chosen or node.op != "call_function":
            continue
        if node.target not in MOVES or any(argument in narrow for argument in arguments(node)):
            narrow[node] = part
    return narrow


def _order(gm: fx.GraphModule, narrow: dict[fx.Node, Part]) -> None:
    """Puts positions of each row in front of what is cut at them."""
    for node in list(gm.graph.nodes):
        part = narrow.get(node)
        if part is not None and isinstance(part.at, Row):
            hoist(gm, [part.at.index], node)


def selection(node: fx.Node) -> Part | None:
    """The part of its first argument that the node is, if it is one position of it."""
    if is_call(node, aten.gather.default):
        return _gathered(node)
    if is_call(node, aten.index.Tensor):
        return _indexed(node)
    if not is_call(node, aten.select.int, aten.slice.Tensor) or len(node.args) < 3:
        return None
    source, dim, at, *_ = node.args
    assert isinstance(source, fx.Node) and isinstance(dim, int)
    steps, rank = value(source).shape[dim], value(source).ndim
    at = 0 if at is None else at
    if not isinstance(steps, int) or steps < 2 or not isinstance(at, int):
        return None
    if is_call(node, aten.slice.Tensor):
        if value(node).shape[dim] != 1:
            return None
        at = max(at, -steps)
    return Part(Place(dim % rank - rank), steps, at % steps)


def _gathered(node: fx.Node) -> Part | None:
    """`x.gather(t, p.view(-1, 1, 1).expand(x with one step))`."""
    source, dim, index = node.args[:3]
    assert isinstance(source, fx.Node) and isinstance(dim, int) and isinstance(index, fx.Node)
    shape, rank = shape_of(source), value(source).ndim
    want = [sympy.Integer(1) if axis == dim % rank else size for axis, size in enumerate(shape)]
    if not is_call(index, aten.expand.default) or shape_of(index) != want:
        return None
    given = index.args[0]
    assert isinstance(given, fx.Node)
    axes = [axis - value(given).ndim for axis, size in enumerate(shape_of(given)) if size != 1]
    if not axes and shape[0] == 1:
        axes = [-rank]
    steps = value(source).shape[dim]
    if len(axes) != 1 or axes[0] == dim % rank - rank or not isinstance(steps, int) or steps < 2:
        return None
    row = Row(given, node.target, shape[axes[0]], Place(axes[0]))
    return Part(Place(dim % rank - rank), steps, row)


def _indexed(node: fx.Node) -> Part | None:
    """`x[arange(B), p]`."""
    source, indices = node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(indices, (list, tuple))
    if len(indices) != 2 or not all(isinstance(index, fx.Node) for index in indices):
        return None
    rows, index = indices
    assert isinstance(rows, fx.Node) and isinstance(index, fx.Node)
    shape, rank = shape_of(source), value(source).ndim
    steps = value(source).shape[1]
    counts = is_call(rows, aten.arange.default) and shape_of(rows) == shape[:1] == shape_of(index)
    if not counts or not isinstance(steps, int) or steps < 2 or value(index).dtype != torch.int64:
        return None
    return Part(Place(1 - rank), steps, Row(index, node.target, shape[0], Place(-rank)))


def _has_rows(node: fx.Node, part: Part) -> bool:
    """Whether the node has the dimension that positions of each row go by, or needs none."""
    if isinstance(part.at, int) or not hasattr(node.meta.get("val"), "shape"):
        return True
    place, shape = part.at.place, shape_of(node)
    return -place.axis <= len(shape) and shape[place.axis] == place.before * part.at.rows * place.after


def _writable(node: fx.Node) -> bool:
    """Whether the sizes of a node are numbers, or a number times one symbol."""
    fakes = node.meta["val"]
    if isinstance(fakes, (list, tuple)):
        return True
    return writable(shape_of(node))


def _narrowed(shape: list[sympy.Expr], place: Place) -> list[sympy.Expr]:
    made = list(shape)
    made[place.axis] = place.before * place.after
    return made


def _factors(
    shape: list[sympy.Expr], places: dict[str, tuple[Place, sympy.Expr]]
) -> list[tuple[sympy.Expr, str]]:
    """The sizes of a shape with each named place a dimension of its own."""
    made: list[tuple[sympy.Expr, str]] = []
    for axis in range(-len(shape), 0):
        mine = [(place, size, name) for name, (place, size) in places.items() if place.axis == axis]
        if len(mine) == 2 and not (mine[1][0].before / (mine[0][0].before * mine[0][1])).is_integer:
            mine.reverse()
        seen, group = sympy.Integer(1), list[tuple[sympy.Expr, str]]()
        for place, size, name in mine:
            group += [(place.before / seen, ""), (size, name)]
            seen = place.before * size
        group.append((shape[axis] / seen, ""))
        made += [factor for factor in group if factor[0] != 1 or factor[1] or not mine]
    return made


class _Surgery:
    """Writes the narrow nodes beside the wide ones."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._narrow: dict[fx.Node, fx.Node] = {}
        self._cuts: dict[tuple[fx.Node, Part], fx.Node] = {}
        self._size = Sizes(gm)

    def narrow(self, node: fx.Node, part: Part) -> None:
        """The node at one position."""
        parts = parts_read(node, part)
        assert parts is not None
        with self._gm.graph.inserting_before(node):
            given = [
                argument if not isinstance(mine, Part) else self._part(argument, mine)
                for argument, mine in zip(arguments(node), parts, strict=True)
            ]
            made = self._rebuilt(node, part, parts, given)
        if not isinstance(node.meta["val"], (list, tuple)):
            assert shape_of(made) == _narrowed(shape_of(node), part.place), f"{node.name} at one position"
        self._narrow[node] = made

    def select(self, node: fx.Node, part: Part) -> None:
        """The selection out of its narrow argument."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        made = self._narrow[source]
        if value(node).ndim < value(made).ndim:
            with self._gm.graph.inserting_before(node):
                made = emit(self._gm, aten.select.int, (made, value(made).ndim + part.place.axis, 0))
        node.replace_all_uses_with(made)
        self._gm.graph.erase_node(node)

    def _rebuilt(self, node: fx.Node, part: Part, parts: list[Any], given: list[fx.Node]) -> fx.Node:
        if NOTHING in parts:
            place = next(index for index, mine in enumerate(parts) if mine is not NOTHING)
            if is_call(node, aten.cat.default):
                return given[place]
            return emit(self._gm, aten.unsqueeze.default, (given[place], part.place.axis))
        if is_call(node, aten.slice.Tensor) and parts[0].steps != part.steps:
            return given[0]
        if node.target in (aten.expand.default, aten.expand_as.default):
            return emit(self._gm, aten.expand.default, (given[0], self._shape(node, part)))
        if node.target in _VIEWS:
            return emit(self._gm, aten.reshape.default, (given[0], self._shape(node, part)))
        rest = iter(given)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda _: next(rest))
        if is_call(node, aten.scaled_dot_product_attention.default) and part.place.axis == -2:
            args = self._causal(node, part, args)
        return emit(self._gm, node.target, args, kwargs)

    def _causal(self, node: fx.Node, part: Part, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A causal mask as its row: the step of the query and those before."""
        if len(args) < 6 or not args[5]:
            return args
        keys = node.args[1]
        assert isinstance(keys, fx.Node) and isinstance(part.at, int)
        seen = torch.arange(int(value(keys).shape[-2])) <= part.at
        if bool(seen.all()):
            return args[:5]
        mask = add_constant(self._gm, f"{node.name}_mask", seen[None])
        return (*args[:3], mask, args[4])

    def _shape(self, node: fx.Node, part: Part) -> list[int | fx.Node]:
        return self._size.all(_narrowed(shape_of(node), part.place))

    def _part(self, node: fx.Node, part: Part) -> fx.Node:
        """One position of a node, cut out where the node itself is wide."""
        if node in self._narrow:
            return self._narrow[node]
        if (node, part) not in self._cuts:
            cut = self._cut if isinstance(part.at, int) else self._cut_rows
            self._cuts[node, part] = cut(node, part)
        return self._cuts[node, part]

    def _cut(self, node: fx.Node, part: Part) -> fx.Node:
        place, at = part.place, part.at
        assert isinstance(at, int)
        axis = value(node).ndim + place.axis
        if place.plain:
            return emit(self._gm, aten.slice.Tensor, (node, axis, at, at + 1))
        apart = shape_of(node)
        apart[axis : axis + 1] = [place.before, sympy.Integer(part.steps), place.after]
        wide = emit(self._gm, aten.reshape.default, (node, self._size.all(apart)))
        thin = emit(self._gm, aten.select.int, (wide, axis + 1, at))
        return emit(self._gm, aten.reshape.default, (thin, self._shape(node, part)))

    def _cut_rows(self, node: fx.Node, part: Part) -> fx.Node:
        """A position for each row: rows and steps first, then picked as the model picks them, then back in place."""
        row = part.at
        assert isinstance(row, Row)
        wide = node if _has_rows(node, part) else self._spread(node, part)
        shape = shape_of(wide)
        apart = _factors(
            shape, {"rows": (row.place, row.rows), "steps": (part.place, sympy.Integer(part.steps))}
        )
        sizes, names = [size for size, _ in apart], [name for _, name in apart]
        order = sorted(range(len(names)), key=lambda axis: names[axis] or "z")
        if sizes != shape:
            wide = emit(self._gm, aten.reshape.default, (wide, self._size.all(sizes)))
        if order != sorted(order):
            wide = emit(self._gm, aten.permute.default, (wide, order))
        thin = self._pick(wide, row, [sizes[axis] for axis in order[2:]])
        if order != sorted(order):
            thin = emit(self._gm, aten.permute.default, (thin, sorted(order, key=order.index)))
        made = self._size.all(_narrowed(shape, part.place))
        return thin if sizes == shape else emit(self._gm, aten.reshape.default, (thin, made))

    def _spread(self, node: fx.Node, part: Part) -> fx.Node:
        """A tensor that is the same for all rows, for each of them."""
        assert isinstance(part.at, Row)
        place, shape = part.at.place, shape_of(node)
        shape = [sympy.Integer(1)] * (-place.axis - len(shape)) + shape
        shape[place.axis] = place.before * part.at.rows * place.after
        return emit(self._gm, aten.expand.default, (node, self._size.all(shape)))

    def _pick(self, wide: fx.Node, row: Row, rest: list[sympy.Expr]) -> fx.Node:
        """One step of (rows, steps, *rest) for each row: (rows, 1, *rest)."""
        count = self._size(row.rows)
        if row.target is aten.gather.default:
            index = emit(self._gm, aten.reshape.default, (row.index, [count, 1, *(1 for _ in rest)]))
            index = emit(self._gm, aten.expand.default, (index, [count, 1, *map(self._size, rest)]))
            return emit(self._gm, aten.gather.default, (wide, 1, index))
        thin = emit(self._gm, row.target, (wide, [emit(self._gm, aten.arange.default, (count,)), row.index]))
        return emit(self._gm, aten.unsqueeze.default, (thin, 1))


_VIEWS = (
    *(aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
)
