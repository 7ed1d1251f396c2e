"""Several requests in one graph: what a request alone decides is computed once for each, what is left for every candidate.

    score(u[owner], C)                                        u (R, ...), C (N, ...), owner (N,) in 0 .. R - 1
    f(x_1[owner], ..., x_k[owner], c)  =  f(x_1, ..., x_k, c)[owner]         f row by row, c constants

The graph of whole batches takes the request's features in every row, so these are picked by their owners first. Whatever
acts on each row by itself gives the same for equal rows, so the picking moves behind it: to where the requests meet the
candidates, and behind their part of a linear map of both (`split_joins`). A node that is not known to act row by row stays where it is, which is always right.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum

import torch
from torch import Tensor, fx

from ..graph import copy_graph, emit, is_call, is_written, operator_name, revalue, sweep
from ..inputs import Feature, flat_layout
from ..program import Program
from ..rows import count_rows, take_rows
from .by_row import Rows, may_cross
from .joined import Joined, Joiner
from .sides import columns_read
from .split_joins import split_joins

__all__ = ["ask_several", "inputs_of", "pick_late"]

aten = torch.ops.aten
_SIZES = (3, 1, 4, 2, 3)
"""How many candidates each request has where the graph is written down. Both numbers are free in it."""


def inputs_of(joined: Joined, joiner: Joiner) -> list[Tensor]:
    """What the graph of several requests takes: their flat tensors, the first rows of matrices with columns of theirs, and
    the owners."""
    first = [joined.flat[index].index_select(0, joined.starts) for index in joiner.mixed]
    return [*joined.flat, *first, joined.owner]


def ask_several(whole: Program, joiner: Joiner) -> Program:
    """The program of several requests, from the captured graph of whole batches: whole request features have a row for each
    request, picked by their owners where they are read.

    Its features are those of `inputs_of`; the layout calls the request's fixed, so that whatever counts, draws or checks
    rows leaves them alone. Cost: one walk over the graph; constants are shared.
    """
    assert isinstance(whole.model, fx.GraphModule)
    example = inputs_of(_joined(whole, joiner), joiner)
    features = [
        replace(f, role="fixed", axis=None) if i in joiner.whole else f for i, f in enumerate(joiner.features)
    ]
    features += [
        replace(features[i], name=f"{features[i].name}[first]", role="fixed", axis=None) for i in joiner.mixed
    ]
    features.append(Feature("owner", torch.int64, (sum(_SIZES),), 0, "rows"))
    features = [replace(f, shape=tuple(tensor.shape)) for f, tensor in zip(features, example, strict=True)]
    gm = copy_graph(whole.model)
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    with gm.graph.inserting_before(inputs[-1].next):
        first = {index: gm.graph.placeholder(f"first_{index}") for index in joiner.mixed}
        owner = gm.graph.placeholder("owner")
        for index, axis in joiner.whole.items():
            readers = list(inputs[index].users)
            picked = gm.graph.call_function(aten.index_select.default, (inputs[index], axis, owner))
            for reader in readers:
                reader.replace_input_with(inputs[index], picked)
        for index, columns in joiner.mixed.items():
            mine = [node for node in inputs[index].users if (columns_read(node) or {-1}) <= set(columns)]
            picked = gm.graph.call_function(aten.index_select.default, (first[index], 0, owner))
            for reader in mine:
                reader.replace_input_with(inputs[index], picked)
    for node in gm.graph.nodes:
        if is_call(node, aten.view.default):
            node.target = aten.reshape.default
    free = [joiner.whole.get(index, feature.growing) for index, feature in enumerate(joiner.features)]
    revalue(gm, example, [*free, *(0 for _ in joiner.mixed), 0])
    sweep(gm)
    layout = replace(whole.layout, features=tuple(features), rows=sum(_SIZES))
    return Program(gm, tuple(example), flat_layout(layout, len(layout.output_axes)))


def _joined(whole: Program, joiner: Joiner) -> Joined:
    """Some requests, of the example's rows."""
    features = whole.layout.features
    rows = count_rows(features, whole.batch) or 1
    flats, start = [], 0
    for request, size in enumerate(_SIZES):
        flat = take_rows(features, whole.batch, torch.arange(start, start + size) % rows)
        mine = take_rows(features, whole.batch, torch.tensor([request % rows]))
        for index in joiner.whole:
            flat[index] = mine[index]
        for index, columns in joiner.mixed.items():
            flat[index][:, columns] = mine[index][:, columns]
        flats.append(flat)
        start += size
    return joiner.join(flats)


class _Side(Enum):
    """What a node depends on. `PICKED` are rows picked by their owners, and what is made of such rows one by one; `SIZE` is
    the number of candidates alone."""

    CONSTANT = "constant"
    SIZE = "size"
    PICKED = "picked"
    OTHER = "other"


def pick_late(several: Program) -> Program:
    """The program of several requests with rows picked by their owners as late as may be.

    Cost: one walk over the graph.
    """
    assert isinstance(several.model, fx.GraphModule)
    gm = copy_graph(several.model)
    if any(is_written(node) for node in gm.graph.nodes):
        return several  # what is written in place may be read under another name
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    rows, owner = Rows([inputs[-1]], [several.layout.features[-1]]), inputs[-1]
    sides = _colour(gm, rows, owner)
    if split_joins(gm, {node for node, side in sides.items() if side is _Side.PICKED}):
        sides = _colour(gm, rows, owner)
    mine = _compute(gm, sides, rows, owner)
    stays: set[fx.Node] = set()
    for node in reversed([node for node in mine if sides[node] is _Side.PICKED]):
        readers = [
            user for user in node.users if user.op == "output" or user in stays or sides[user] is _Side.OTHER
        ]
        if readers and not _may_cross(node, sides, rows):
            stays.add(node)  # for those who read it there; at the rows of the requests it is there as well
        elif readers and not _is_pick(node, owner):
            with gm.graph.inserting_before(node):
                picked = emit(gm, aten.index_select.default, (mine[node], rows.axis(node), owner))
            for reader in readers:
                reader.replace_input_with(node, picked)
    sweep(gm)
    return several.with_model(gm)


def _is_pick(node: fx.Node, owner: fx.Node) -> bool:
    return is_call(node, aten.index_select.default) and node.args[2] is owner


def _colour(gm: fx.GraphModule, rows: Rows, owner: fx.Node) -> dict[fx.Node, _Side]:
    """The side of every node but the output."""
    sides: dict[fx.Node, _Side] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr" or isinstance(node.meta.get("val"), int):
            sides[node] = _Side.CONSTANT
        elif node.op == "call_function":
            sides[node] = _side_of_call(node, sides, rows, owner)
        elif node.op == "placeholder":
            sides[node] = _Side.OTHER
    return sides


def _side_of_call(node: fx.Node, sides: dict[fx.Node, _Side], rows: Rows, owner: fx.Node) -> _Side:
    if _is_pick(node, owner):
        return _Side.PICKED
    if operator_name(node) == "sym_size" and rows.is_count(node.meta["val"]):
        return _Side.SIZE
    found = {sides[arg] for arg in node.all_input_nodes} - {_Side.CONSTANT}
    if not found or found == {_Side.SIZE}:
        return _Side.SIZE if found else _Side.CONSTANT
    if _Side.OTHER in found:
        return _Side.OTHER
    sizes = [arg for arg in node.all_input_nodes if sides[arg] is _Side.SIZE]
    return _Side.PICKED if rows.acts_by_row(node, sizes) else _Side.OTHER


def _may_cross(node: fx.Node, sides: dict[fx.Node, _Side], rows: Rows) -> bool:
    """Whether rows of the node can be picked, and are better picked than those it looks at."""
    return isinstance(node.meta["val"], Tensor) and may_cross(node, _Side.PICKED, sides, rows)


def _compute(
    gm: fx.GraphModule, sides: dict[fx.Node, _Side], rows: Rows, owner: fx.Node
) -> dict[fx.Node, fx.Node]:
    """Everything that is picked, and sizes, once more at the rows of the requests."""
    mine: dict[fx.Node, fx.Node] = {}
    with gm.graph.inserting_before(owner.next):
        count = _requests(gm, rows)
    for node in list(gm.graph.nodes):
        side = sides.get(node)
        if side is _Side.PICKED and _is_pick(node, owner):
            mine[node] = node.args[0]
        elif side is _Side.SIZE and operator_name(node) == "sym_size":
            mine[node] = count
        elif side in (_Side.PICKED, _Side.SIZE):
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda old: mine.get(old, old))
            with gm.graph.inserting_before(node):
                mine[node] = emit(gm, node.target, args, kwargs)
    return mine


def _requests(gm: fx.GraphModule, rows: Rows) -> fx.Node:
    """The number of requests, read off the first input that has it."""
    for node in gm.graph.nodes:
        for axis, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt) and not rows.is_count(size):
                return emit(gm, aten.sym_size.int, (node, axis))
    raise AssertionError("no input has a row for each request")
