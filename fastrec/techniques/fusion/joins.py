"""Joins of what the request gives with what the candidates give, read through what acts on each part alone.

    x = cat([expand(u), c], k)        u (1, ..., d_u, ...), expanded to N rows; c (N, ..., d_c, ...)
    f(x) = cat([expand(f(u)), f(c)], k)        f element-wise, a lookup, a reshape, a sum along another dimension, ...

A `Join` keeps the two parts apart: `once` at one row, `each` at N rows, whatever the order in which a model's author
wrote its fields: `order` says where each position of the join stands in [once | each]. Rules that end such a chain
(a linear map, a sum along the join, a selection from it) ask `Joins.read` for the parts of their argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import constant, emit, is_call, operator_name, value
from .interactions import gram, pairs
from .join import SPLITS, Join, picks, rescaled, take
from .once import dimension, spread_of
from .pointwise import is_pointwise

__all__ = ["Joins"]

aten = torch.ops.aten
_FLAT = (aten.view.default, aten.reshape.default, aten.flatten.using_ints)


class Joins:
    """Reads the joins of one graph; what the parts need is put in front of the node that was read.

    Without `products`, dot products of the parts are not read: they are made anew from the parts, which is worth
    doing once, when it is known which are the request's.
    """

    def __init__(self, gm: fx.GraphModule, *, products: bool = True) -> None:
        self._gm = gm
        self._products = products
        self._known: dict[fx.Node, Join | None] = {}

    def read(self, node: Any) -> Join | None:
        """The parts of a node, or None where it is no join."""
        if (
            not isinstance(node, fx.Node)
            or node.op != "call_function"
            or not isinstance(node.meta.get("val"), Tensor)
        ):
            return None
        if node not in self._known:
            self._known[node] = None  # a graph has no cycles, but a failed reading must not be tried again
            reader = self._reader(node)
            if reader is not None:
                # The parts of the arguments stand in front of them.
                self._known[node] = reader(node)
        return self._known[node]

    def _reader(self, node: fx.Node) -> Callable[[fx.Node], Join | None] | None:
        name = operator_name(node)
        if name in ("cat", "concat", "stack"):
            return self._join
        if is_pointwise(node):
            return self._pointwise
        if name in ("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze"):
            return self._reshape
        if name in ("transpose", "permute"):
            return self._moved
        if name in ("sum", "mean") and len(node.args) > 1:
            return self._reduced
        readers = {
            "embedding": self._lookup,
            "linear": self._positionwise,
            "layer_norm": self._positionwise,
            "select": self._elsewhere,
            "slice": self._sliced,
            "index_select": self._selected,
            "getitem": self._piece,
        }
        return readers.get(name)

    def _made(
        self, node: fx.Node, join: Join, axis: int, rows: int, call: Callable[[fx.Node], fx.Node]
    ) -> Join:
        with self._gm.graph.inserting_before(node):
            return Join(axis, rows, call(join.once), call(join.each), join.order)

    def _again(self, node: fx.Node, argument: fx.Node, part: fx.Node) -> fx.Node:
        """The same call on a part in place of the argument."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: part if arg is argument else arg)
        return emit(self._gm, node.target, args, kwargs)

    def _join(self, node: fx.Node) -> Join | None:
        parts: Any = node.args[0]
        stacked = operator_name(node) == "stack"
        axis = dimension(node, 1) % value(node).ndim
        once: list[fx.Node] = []
        each: list[fx.Node] = []
        order: list[tuple[bool, int]] = []
        rows: set[int] = set()
        sizes = [0, 0]

        def add(part: fx.Node, repeated: bool) -> None:
            size = 1 if stacked else int(value(part).shape[axis])
            (once if repeated else each).append(part)
            order.extend((repeated, sizes[repeated] + k) for k in range(size))
            sizes[repeated] += size

        for part in parts:
            spread, inner = spread_of(part), None if stacked else self.read(part)
            if spread is not None:
                rows.add(spread[1] + (stacked and axis <= spread[1]))
                add(spread[0], True)
            elif inner is not None and inner.axis == axis:
                rows.add(inner.rows)
                start = list(sizes)
                once.append(inner.once)
                each.append(inner.each)
                order.extend(
                    (True, start[1] + k) if k < inner.width else (False, start[0] + k - inner.width)
                    for k in inner.order
                )
                sizes[1] += inner.width
                sizes[0] += int(value(inner.each).shape[axis])
            elif stacked or isinstance(value(part).shape[axis], int):
                add(part, False)
            else:
                return None
        if not once or not each or len(rows) != 1 or axis in rows:
            return None
        row = rows.pop()
        if any(isinstance(n, int) for n in [value(node).shape[row]]):
            return None
        with self._gm.graph.inserting_before(node):
            joined = [
                group[0] if len(group) == 1 and not stacked else emit(self._gm, node.target, (group, axis))
                for group in (once, each)
            ]
        return Join(
            axis, row, joined[0], joined[1], tuple(k if repeated else sizes[1] + k for repeated, k in order)
        )

    def _pointwise(self, node: fx.Node) -> Join | None:
        read = [(arg, self.read(arg)) for arg in node.all_input_nodes]
        found = [(arg, join) for arg, join in read if join is not None]
        if not found:
            return None
        first = found[0][1]
        assert first is not None
        shape = value(node).shape
        if len(shape) != value(found[0][0]).ndim or str(shape[first.axis]) != str(len(first.order)):
            return None
        parts: list[dict[fx.Node, fx.Node]] = [{}, {}]
        with self._gm.graph.inserting_before(node):
            for arg, join in read:
                if join is not None:
                    if (join.axis, join.rows, join.order) != (first.axis, first.rows, first.order):
                        return None
                    if value(arg).ndim != len(shape):
                        return None
                    parts[0][arg], parts[1][arg] = join.once, join.each
                    continue
                spread = spread_of(arg)
                plain = spread[0] if spread is not None else arg
                cut = self._cut(plain, first, len(shape))
                if cut is None:
                    return None
                parts[0][arg], parts[1][arg] = cut
            made = []
            for part in parts:
                args, kwargs = fx.map_arg((node.args, node.kwargs), part.__getitem__)
                made.append(emit(self._gm, node.target, args, kwargs))
        return replace(first, once=made[0], each=made[1])

    def _cut(self, other: fx.Node, join: Join, ndim: int) -> tuple[fx.Node, fx.Node] | None:
        """Another argument beside each part: itself where it is the same along the join, else its positions."""
        shape = value(other).shape
        lag = ndim - len(shape)
        if join.rows >= lag and not (isinstance(shape[join.rows - lag], int) and shape[join.rows - lag] == 1):
            return None  # it differs from candidate to candidate
        if any(isinstance(n, torch.SymInt) for n in shape):
            return None
        axis = join.axis - lag
        if axis < 0 or shape[axis] == 1:
            return other, other
        if not join.plain:
            return None
        once, each = join.places()
        return take(self._gm, other, axis, once), take(self._gm, other, axis, each)

    def _reshape(self, node: fx.Node) -> Join | None:
        source = node.args[0]
        join = self.read(source)
        if join is None:
            return self._interaction(node, source, None)
        assert isinstance(source, fx.Node)
        before, after = ([str(n) for n in value(n).shape] for n in (source, node))
        if join.axis < join.rows:
            return None
        # Where the join's dimension begins in the new shape: behind the same dimensions as before, ones aside.
        lead = [n for n in before[: join.axis] if n != "1"]
        place = seen = 0
        while place < len(after) and (seen < len(lead) or after[place] == "1"):
            if after[place] != "1":
                if after[place] != lead[seen]:
                    return None
                seen += 1
            place += 1
        if place == len(after) or not isinstance(value(node).shape[place], int):
            return None
        rows = [k for k in range(place) if after[k] == before[join.rows]]
        if len(rows) != 1:
            return None
        old, new = len(join.order), int(value(node).shape[place])
        order = rescaled(join.order, old, new)
        if order is None:
            return None
        widths = [n * new / old for n in (join.width, int(value(join.each).shape[join.axis]))]
        if any(not w.is_integer() for w in widths):
            return None
        tail = list(value(node).shape[place + 1 :])
        if any(not isinstance(n, int) for n in (*tail, *value(node).shape[rows[0] + 1 : place])):
            return None
        with self._gm.graph.inserting_before(node):
            made = []
            for part, width in zip((join.once, join.each), widths, strict=True):
                sizes: list[Any] = [*value(node).shape[:place], int(width), *tail]
                sizes[rows[0]] = 1 if part is join.once else -1
                if any(isinstance(n, torch.SymInt) for n in sizes):
                    return None
                made.append(emit(self._gm, aten.reshape.default, (part, sizes)))
        return Join(place, rows[0], made[0], made[1], order)

    def _moved(self, node: fx.Node) -> Join | None:
        source = node.args[0]
        join = self.read(source)
        if join is None:
            return None
        assert isinstance(source, fx.Node)
        ndim = value(source).ndim
        axes = list(range(ndim))
        if operator_name(node) == "permute":
            given: Any = node.args[1]
            axes = [int(k) % ndim for k in given]
        else:
            first, second = dimension(node, 1) % ndim, dimension(node, 2) % ndim
            axes[first], axes[second] = second, first
        return self._made(
            node,
            join,
            axes.index(join.axis),
            axes.index(join.rows),
            lambda part: self._again(node, source, part),
        )

    def _reduced(self, node: fx.Node) -> Join | None:
        """A sum along other dimensions."""
        args: tuple[Any, ...] = node.args
        source, dims, *rest = args
        join = self.read(source)
        if join is None or not isinstance(dims, (list, tuple)) or not dims or not isinstance(source, fx.Node):
            return None
        away = {int(k) % value(source).ndim for k in dims}
        if join.axis in away or join.rows in away:
            return None
        kept = bool(rest[0]) if rest else bool(node.kwargs.get("keepdim", False))
        axis, rows = (k if kept else k - sum(d < k for d in away) for k in (join.axis, join.rows))
        return self._made(node, join, axis, rows, lambda part: self._again(node, source, part))

    def _lookup(self, node: fx.Node) -> Join | None:
        table, ids = node.args[:2]
        join = self.read(ids)
        if join is None or constant(self._gm, table) is None or not isinstance(ids, fx.Node):
            return None
        return self._made(node, join, join.axis, join.rows, lambda part: self._again(node, ids, part))

    def _positionwise(self, node: fx.Node) -> Join | None:
        """What acts on the last dimensions alone, the join's not among them."""
        source = node.args[0]
        join = self.read(source)
        if join is None or not isinstance(source, fx.Node):
            return None
        used = len(node.args[1]) if operator_name(node) == "layer_norm" else 1  # type: ignore[arg-type]  # an argument of a node is of any type
        if max(join.axis, join.rows) >= value(source).ndim - used:
            return None
        if any(constant(self._gm, arg) is None for arg in node.all_input_nodes if arg is not source):
            return None
        return self._made(node, join, join.axis, join.rows, lambda part: self._again(node, source, part))

    def _elsewhere(self, node: fx.Node) -> Join | None:
        """A selection along another dimension."""
        source = node.args[0]
        join = self.read(source)
        if join is None or not isinstance(source, fx.Node) or not isinstance(node.args[2], int):
            return None
        axis = dimension(node, 1) % value(source).ndim
        if axis in (join.axis, join.rows):
            return None
        return self._made(
            node,
            join,
            join.axis - (axis < join.axis),
            join.rows - (axis < join.rows),
            lambda part: self._again(node, source, part),
        )

    def _sliced(self, node: fx.Node) -> Join | None:
        source = node.args[0]
        join = self.read(source)
        if join is None or not isinstance(source, fx.Node):
            return None
        bounds: tuple[Any, ...] = (*node.args[2:], *(None, None, 1)[len(node.args) - 2 :])
        axis = dimension(node, 1) % value(source).ndim
        if any(isinstance(bound, fx.Node) for bound in bounds) or axis == join.rows:
            return None
        if axis != join.axis:
            return self._made(node, join, join.axis, join.rows, lambda part: self._again(node, source, part))
        return self._picked(node, join, range(len(join.order))[slice(*bounds)])

    def _selected(self, node: fx.Node) -> Join | None:
        source: Any = node.args[0]
        chosen = constant(self._gm, node.args[2])
        if chosen is not None and is_call(source, *_FLAT) and gram(source.args[0]) is not None:
            return self._interaction(node, source.args[0], chosen)
        join = self.read(source)
        if join is None or not isinstance(source, fx.Node):
            return None
        if chosen is None or chosen.ndim != 1 or dimension(node, 1) % value(source).ndim != join.axis:
            return None
        return self._picked(node, join, [int(k) % len(join.order) for k in chosen])

    def _interaction(self, node: fx.Node, product: Any, chosen: Tensor | None) -> Join | None:
        """Some or all dot products of the parts' positions, as (N, pairs)."""
        source = gram(product) if self._products else None
        join = self.read(source)
        if join is None or (join.axis, join.rows) != (1, 0) or value(node).ndim != 2:
            return None
        flat = torch.arange(len(join.order) ** 2) if chosen is None else chosen
        if value(node).shape[1] != len(flat):
            return None
        return pairs(self._gm, node, join, flat.tolist())

    def _piece(self, node: fx.Node) -> Join | None:
        """One piece of a split along the join."""
        whole, index = node.args
        if not is_call(whole, *SPLITS) or not isinstance(index, int) or not isinstance(whole, fx.Node):
            return None
        source = whole.args[0]
        join = self.read(source)
        if join is None or not isinstance(source, fx.Node):
            return None
        if dimension(whole, 2) % value(source).ndim != join.axis:
            return None
        widths = [int(part.shape[join.axis]) for part in whole.meta["val"]]
        start = sum(widths[:index])
        return self._picked(node, join, range(start, start + widths[index]))

    def _picked(self, node: fx.Node, join: Join, positions: Sequence[int]) -> Join | None:
        """Some positions of a join, of both parts."""
        order = [join.order[k] for k in positions]
        once = sorted({k for k in order if k < join.width})
        each = sorted({k for k in order if k >= join.width})
        if not once or not each:
            return None
        with self._gm.graph.inserting_before(node):
            mine = take(self._gm, join.once, join.axis, once)
            theirs = take(self._gm, join.each, join.axis, [k - join.width for k in each])
        new = {k: i for i, k in enumerate([*once, *each])}
        return Join(join.axis, join.rows, mine, theirs, tuple(new[k] for k in order))

    def pure(self, node: fx.Node) -> tuple[Join, fx.Node, int, bool] | None:
        """A selection from a join that lies in one of its parts: the join, the selection, its rows' dimension, and whether it is the request's."""
        found = picks(self._gm, node)
        if found is None:
            return None
        source, axis, positions, dropped = found
        join = self.read(source)
        if join is None or axis != join.axis or not positions:
            return None
        order = [join.order[k] for k in positions]
        mine = all(k < join.width for k in order)
        if not mine and any(k < join.width for k in order):
            return None
        part, shift = (join.once, 0) if mine else (join.each, join.width)
        with self._gm.graph.inserting_before(node):
            made = (
                emit(self._gm, aten.select.int, (part, axis, order[0] - shift))
                if dropped
                else take(self._gm, part, axis, [k - shift for k in order])
            )
        return join, made, join.rows - (dropped and axis < join.rows), mine
