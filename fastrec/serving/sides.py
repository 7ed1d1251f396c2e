"""The sides of a graph: what the candidates alone decide, what the request alone decides, and what needs both.

    f(u, C)  =  score(user(u), items(C))          u one request, C the features of N candidates

`items` is the work that acts candidate by candidate, so it can be done once for a catalogue; `user` the work of one
row; `score` the rest. Which side a node is on follows from the data flow alone. A node that is not known to act row
by row is left to `score`, which is always right: at worst `items` hands its features through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx

from ..graph import constant, copy_graph, emit, is_call, is_written, operator_name
from ..inputs import Feature
from ..program import Program
from .by_row import Rows, may_cross

__all__ = ["Sides", "columns_read", "split_sides"]

aten = torch.ops.aten


class Side(Enum):
    """Whose values a node depends on. `SIZE` is the number of candidates alone."""

    CONSTANT = "constant"
    SIZE = "size"
    REQUEST = "request"
    CANDIDATES = "candidates"
    BOTH = "both"


@dataclass(frozen=True)
class Sides:
    """A graph in three parts.

    `items` takes the features numbered `candidates` and gives tensors in which dimension `axes[i]` counts rows;
    `user` takes those numbered `request`, one row of each; `score` takes the tensors of `user`, then those of
    `items` with the rows moved to the front, then the features numbered `raw` as they are. A matrix with columns
    of the request is a feature of both sides: each reads its own columns, and `raw` has the request's in every row.
    """

    items: fx.GraphModule
    user: fx.GraphModule
    score: fx.GraphModule
    candidates: tuple[int, ...]
    request: tuple[int, ...]
    axes: tuple[int, ...]
    raw: tuple[int, ...]


def split_sides(asked: Program, *, whole: bool = False) -> Sides:
    """The three parts of the graph of one request. With `whole`, all work is left to `score`.

    Cost: one walk over the graph. Its constants are shared.
    """
    assert isinstance(asked.model, fx.GraphModule)
    gm, features = copy_graph(asked.model), asked.layout.features
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    rows = Rows(inputs, features)
    held = dict(zip(inputs, features, strict=True))
    sides = _colour(gm, held, rows, whole)
    if _take_biases_out(gm, sides):
        sides = _colour(gm, held, rows, whole)
    _settle(gm, sides, rows)
    candidates = [i for i, feature in enumerate(features) if feature.role != "fixed"]
    request = [i for i, f in enumerate(features) if f.role == "fixed" or isinstance(f.request, tuple)]
    crossing = [node for node in gm.graph.nodes if sides.get(node) is not None and _crosses(node, sides)]
    users = [node for node in crossing if sides[node] is Side.REQUEST]
    items = [node for node in crossing if sides[node] is Side.CANDIDATES]
    raw = [i for i in candidates if sides[inputs[i]] is Side.BOTH and _crosses(inputs[i], sides)]
    # Values are cut by what counts them.
    cutters = {features[i].group for i in raw if features[i].role == "values"}
    raw = [i for i in candidates if i in raw or features[i].name in cutters]
    if not items and not raw:
        # Something has to say how many candidates there are.
        raw = [i for i in candidates if sides[inputs[i]] is Side.BOTH][:1]
        items = [] if raw else [inputs[candidates[0]]]
    return Sides(
        items=_part(gm, [inputs[i] for i in candidates], items, rows),
        user=_part(gm, [inputs[i] for i in request], users, rows),
        score=_score(gm, users, items, [inputs[i] for i in raw], rows),
        candidates=tuple(candidates),
        request=tuple(request),
        axes=tuple(rows.axis(node) for node in items),
        raw=tuple(raw),
    )


def _colour(
    gm: fx.GraphModule, features: dict[fx.Node, Feature], rows: Rows, whole: bool
) -> dict[fx.Node, Side]:
    """The side of every node but the output."""
    sides: dict[fx.Node, Side] = {}
    # What is written in place may be read under another name.
    whole = whole or any(is_written(node) for node in gm.graph.nodes)
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            sides[node] = _side_of_input(node, features[node], rows)
        elif node.op == "get_attr":
            sides[node] = Side.CONSTANT
        elif node.op == "call_function":
            sides[node] = _side_of_call(node, features, sides, rows, whole)
    return sides


def _settle(gm: fx.GraphModule, sides: dict[fx.Node, Side], rows: Rows) -> None:
    """Leaves to `score` what cannot cross to it, or is better computed there."""
    for node in reversed(gm.graph.nodes):
        one_sided = node.op == "call_function" and sides[node] in (Side.REQUEST, Side.CANDIDATES)
        if one_sided and _crosses(node, sides) and not _may_cross(node, sides, rows):
            sides[node] = Side.BOTH


def _take_biases_out(gm: fx.GraphModule, sides: dict[fx.Node, Side]) -> bool:
    """`linear(x, W, b)` as `linear(x, W) + b` where x is the candidates' and b the request's: `W x` is done once."""
    found = [
        node
        for node in gm.graph.nodes
        if is_call(node, aten.linear.default)
        and len(node.args) == 3
        and [sides.get(arg) for arg in node.args] == [Side.CANDIDATES, Side.CONSTANT, Side.REQUEST]
    ]
    for node in found:
        x, weight, bias = node.args
        with gm.graph.inserting_before(node):
            made = emit(gm, aten.add.Tensor, (emit(gm, aten.linear.default, (x, weight)), bias))
        node.replace_all_uses_with(made)
        gm.graph.erase_node(node)
    return bool(found)


def _side_of_input(node: fx.Node, feature: Feature, rows: Rows) -> Side:
    if feature.role == "fixed":
        return Side.REQUEST
    own = feature.role == "rows" and not isinstance(feature.request, tuple)
    return Side.CANDIDATES if own and rows.counted(node) else Side.BOTH


def _side_of_call(
    node: fx.Node, features: dict[fx.Node, Feature], sides: dict[fx.Node, Side], rows: Rows, whole: bool
) -> Side:
    if isinstance(node.meta.get("val"), int):
        return Side.CONSTANT
    if rows.is_count(node.meta.get("val")) and operator_name(node) == "sym_size":
        return Side.SIZE
    found = {sides[arg] for arg in node.all_input_nodes} - {Side.CONSTANT}
    matrix = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    mine = features[matrix].request if matrix in features else None
    if isinstance(mine, tuple) and len(node.all_input_nodes) - len(_constants(node, sides)) == 1:
        # A matrix of both sides: its first row is the request's, columns that are no request's are the candidates'.
        if is_call(node, aten.slice.Tensor) and node.args[1:4] == (0, 0, 1):
            return Side.BOTH if whole else Side.REQUEST
        columns = columns_read(node)
        if columns is not None and not columns & set(mine):
            found = {Side.CANDIDATES}
    if not found or found == {Side.SIZE}:
        return Side.SIZE if found else Side.CONSTANT
    if whole or Side.BOTH in found:
        return Side.BOTH
    if found == {Side.REQUEST}:
        return Side.REQUEST
    sizes = [arg for arg in node.all_input_nodes if sides[arg] is Side.SIZE]
    if Side.REQUEST not in found and rows.acts_by_row(node, sizes):
        return Side.CANDIDATES
    return Side.BOTH


def _constants(node: fx.Node, sides: dict[fx.Node, Side]) -> list[fx.Node]:
    return [arg for arg in node.all_input_nodes if sides[arg] is Side.CONSTANT]


def columns_read(node: fx.Node) -> set[int] | None:
    """The columns of a matrix that a call reads; None where that is not plain."""
    matrix: Any
    rest: list[Any]
    matrix, *rest = node.args
    if not isinstance(matrix, fx.Node):
        return None
    width = matrix.meta["val"].shape[1]
    if is_call(node, aten.select.int) and rest[0] in (1, -1) and isinstance(rest[1], int):
        return {rest[1] % width}
    if is_call(node, aten.slice.Tensor) and rest and rest[0] in (1, -1):
        bounds: list[Any] = [*rest[1:], *[None] * (4 - len(rest))]
        if all(bound is None or isinstance(bound, int) for bound in bounds):
            return set(range(width)[slice(*bounds)])
    if is_call(node, aten.index_select.default) and rest[0] in (1, -1):
        gm = node.graph.owning_module
        chosen = None if gm is None else constant(gm, rest[1])
        return None if chosen is None else {int(k) % width for k in chosen}
    return None


def _crosses(node: fx.Node, sides: dict[fx.Node, Side]) -> bool:
    """Whether `score`, or the answer, reads the node."""
    return any(user.op == "output" or sides[user] is Side.BOTH for user in node.users)


def _may_cross(node: fx.Node, sides: dict[fx.Node, Side], rows: Rows) -> bool:
    if sides[node] is Side.REQUEST:
        return isinstance(node.meta["val"], Tensor)
    return may_cross(node, Side.CANDIDATES, sides, rows)


def _part(
    gm: fx.GraphModule, inputs: Sequence[fx.Node], results: Sequence[fx.Node], rows: Rows
) -> fx.GraphModule:
    """The part of the graph that computes `results`, taking `inputs`."""
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {node: graph.node_copy(node) for node in inputs}
    places = [(copies[node], rows.axis(node)) for node in inputs if rows.counted(node)]
    return _finish(gm, graph, copies, places, results, rows)


def _score(
    gm: fx.GraphModule, users: Sequence[fx.Node], items: Sequence[fx.Node], raw: Sequence[fx.Node], rows: Rows
) -> fx.GraphModule:
    """The part of the graph that computes its outputs from tensors of both sides."""
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    places: list[tuple[fx.Node, int]] = []
    moved: list[tuple[fx.Node, fx.Node]] = []
    for index, node in enumerate((*users, *items, *raw)):
        made = copies[node] = graph.placeholder(f"tensors_{index}")
        made.meta["val"] = node.meta["val"]
        if node in items:
            made.meta["val"] = node.meta["val"].movedim(rows.axis(node), 0)
            places.append((made, 0))
            moved.append((node, made))
        elif rows.counted(node) and node not in users:
            places.append((made, rows.axis(node)))
    for node, made in moved:
        if axis := rows.axis(node):
            order = [*range(1, axis + 1), 0, *range(axis + 1, made.meta["val"].ndim)]
            copies[node] = graph.call_function(aten.permute.default, (made, order))
            copies[node].meta["val"] = node.meta["val"]
    (outputs,) = gm.graph.output_node().args
    return _finish(gm, graph, copies, places, outputs, rows)  # type: ignore[arg-type]  # an argument of a node is of any type


def _finish(
    gm: fx.GraphModule,
    graph: fx.Graph,
    copies: dict[fx.Node, Any],
    places: Sequence[tuple[fx.Node, int]],
    results: Sequence[fx.Node],
    rows: Rows,
) -> fx.GraphModule:
    """Copies what leads from the nodes known so far to `results`; the number of rows is read off `places`."""
    pending, wanted = list(results), set[fx.Node]()
    counts = places and (lambda node: operator_name(node) == "sym_size" and rows.is_count(node.meta["val"]))
    while pending:
        node = pending.pop()
        if node not in copies and node not in wanted:
            wanted.add(node)
            if not (counts and counts(node)):
                pending += node.all_input_nodes
    for node in gm.graph.nodes:
        if node not in wanted:
            continue
        if isinstance(node.meta.get("val"), int):
            copies[node] = node.meta["val"]
        elif counts and counts(node):
            copies[node] = graph.call_function(aten.sym_size.int, places[0])
            copies[node].meta["val"] = node.meta["val"]
        else:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
            if is_call(node, aten.view.default):
                # Rows moved to the front and back have strides that a view may refuse.
                copies[node].target = aten.reshape.default
    graph.output(tuple(copies[node] for node in results))
    graph.lint()
    return fx.GraphModule(gm, graph)
