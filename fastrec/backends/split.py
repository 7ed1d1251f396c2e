"""A graph in two: the embedding lookups, and the dense rest.

    outputs = dense(*lookups(*inputs))

Gathering rows is slow in inference libraries and fast in torch, matrix products the other way round, so a
backend may run each part where it is fastest. `lookups` holds every lookup in a constant table whose ids come
from the inputs by integer arithmetic, selections, reshapes and lookups in tables of integers, and what those ids need.

How many positions of a request hold something depends on its values, and compilers want such sizes given. So
whatever is picked by `nonzero` of the request's is picked in `lookups`, with all that it comes from; the dense rest
takes it with a free size. Rows held as small integers only torch reads, so their lookups go there always.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ..graph import VIEWS, ancestors, is_call, is_free, is_written, value
from ..ops import INT4, INT8
from .bags import as_bags, is_pooling
from .direct import direct

__all__ = ["Split", "front_of", "split_lookups", "split_picks"]

_aten = torch.ops.aten

# Operators that gather rows of their table, the argument at this position.
_TABLES = {"embedding": 0, "embedding_bag": 0, "_embedding_bag": 0, "index_select": 0, "index": 0}
_PACKED = "quantized::embedding_"
# Views of a row-major tensor that stay row-major: the joined rows can be handed over without a copy.
# So do rows in another precision.
_FLATVIEWS = frozenset(["view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "to"])
_JOINS = frozenset(("cat", "concat", "stack"))


@dataclass(frozen=True)
class Split:
    """`lookups` maps the graph's flat inputs to a tuple of tensors, `dense` maps those to its flat outputs.

    `tables` counts the lookups that moved, `picks` what is picked by value; with neither, `lookups` only passes
    inputs on.
    """

    lookups: fx.GraphModule
    dense: fx.GraphModule
    tables: int
    picks: int = 0

    @property
    def moved(self) -> fx.GraphModule | None:
        """`lookups`, or None where nothing moved."""
        return self.lookups if self.tables or self.picks else None


def front_of(
    lookups: fx.GraphModule | None, batch: Sequence[Tensor], *, alike: bool = False
) -> Callable[..., tuple[Tensor, ...]] | None:
    """What runs `lookups` in torch, in front of a session of the rest; None where nothing moved.

    `batch` is an example, `alike` has sums of few rows rounded as those of many are.
    """
    return None if lookups is None else direct(as_bags(lookups, alike=alike), tuple(batch))


def split_lookups(gm: fx.GraphModule) -> Split:
    """The graph's lookups and its dense rest, sharing every tensor with it; `gm` is not changed.

    A lookup whose ids are computed from numbers that other lookups give, or that a graph with in-place writes makes,
    stays in the dense part. Cost: one pass over the nodes.
    """
    return _split(gm, _moved(gm.graph, _is_lookup))


def split_picks(gm: fx.GraphModule) -> Split:
    """What is picked by value and all it needs, and the rest, lookups included: for who gathers rows well itself.

    Lookups of rows held as small integers are not among the rest, as in `split_lookups`.
    """
    return _split(gm, _moved(gm.graph, _is_coded))


def _split(gm: fx.GraphModule, moved: set[fx.Node]) -> Split:
    tables = sum(_is_lookup(node) for node in moved)
    picks = sum(_name(node) == "nonzero" for node in moved)
    passed = _boundary(gm.graph, moved)
    return Split(_front(gm, moved, passed), _rest(gm, moved, passed), tables, picks)


def _name(node: fx.Node) -> str:
    target = node.target
    return target._schema.name.removeprefix("aten::") if isinstance(target, OpOverload) else ""


def _is_lookup(node: fx.Node) -> bool:
    """Whether the node gathers rows of a constant table."""
    name = _name(node)
    if name.startswith(_PACKED) or _is_coded(node):
        table: object = node.args[0]
    elif name in _TABLES and len(node.args) > 1:
        table = node.args[_TABLES[name]]
        if name == "index_select" and node.args[1] != 0:
            return False
        if name == "index" and not _indexes_rows(node):
            return False
    else:
        return False
    return isinstance(table, fx.Node) and table.op == "get_attr"


def _is_coded(node: fx.Node) -> bool:
    """Whether the node gathers rows of a table of small integers."""
    return node.target in (INT8, INT4)


def _is_sum(node: fx.Node, sources: list[fx.Node]) -> bool:
    """Whether the node adds looked-up rows in fewer bits and others, of one shape."""
    shapes = {tuple(map(_symbol, source.meta["val"].shape)) for source in sources}
    return (
        _name(node) == "add"
        and len(sources) == len(node.args) == 2
        and len(shapes) == 1
        and any(map(_is_lossy, sources))
    )


def _is_lossy(node: fx.Node) -> bool:
    """Whether the rows were looked up in fewer bits than they are read in, moved or added up since."""
    while not _is_lookup(node):
        node = node.all_input_nodes[0]
    table = node.args[0]
    assert isinstance(table, fx.Node)
    return _is_coded(node) or table.meta["val"].dtype is torch.float16


def _indexes_rows(node: fx.Node) -> bool:
    indices = node.args[1]
    return isinstance(indices, (list, tuple)) and len(indices) == 1 and isinstance(indices[0], fx.Node)


def _is_exact(value: object) -> bool:
    """Whether a fake value is made of whole numbers: integer or boolean tensors, or sizes."""
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex())
    if isinstance(value, (tuple, list)):
        return all(_is_exact(item) for item in value)
    return isinstance(value, (int, bool, torch.SymInt))


def _moved(graph: fx.Graph, wanted: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The nodes of the lookup part: these lookups, what their ids need, and joins of nothing but them."""
    if _writes(graph):
        return set()
    ids: set[fx.Node] = set()
    moved = _picked(graph)
    for node in graph.nodes:
        if node.op == "placeholder":
            ids.add(node)
        elif node.op == "call_function":
            sources = [arg for arg in node.all_input_nodes if arg.op != "get_attr"]
            if wanted(node):
                if sources and all(arg in ids for arg in sources):
                    moved |= {node, *ancestors(sources)}
                    if _is_exact(node.meta.get("val")):
                        ids.add(node)
            elif all(arg in ids for arg in sources) and (
                _is_exact(node.meta.get("val")) or (_name(node) in VIEWS and sources)
            ):
                ids.add(node)
    return moved | _joined(graph, moved, wanted)


def _writes(graph: fx.Graph) -> bool:
    return any(is_written(node) for node in graph.nodes)


def _picked(graph: fx.Graph) -> set[fx.Node]:
    """Places that depend on values of the request, what is picked at these, and what both come from."""
    if _writes(graph):
        return set()
    places: set[fx.Node] = set()
    moved: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if _name(node) == "nonzero":
            chosen = not any(
                is_free(source) for source in [*node.all_input_nodes, *ancestors([*node.all_input_nodes])]
            )
        elif _name(node) == "index_select":
            source, _, index = node.args
            assert isinstance(source, fx.Node)
            if index in places and not any(is_free(one) for one in ancestors([source])):
                moved |= {node, *ancestors([source])}
            continue
        else:
            chosen = _name(node) in VIEWS and any(arg in places for arg in node.all_input_nodes)
        if chosen:
            places.add(node)
            moved |= {node, *ancestors([node])}
    return moved


def _joined(graph: fx.Graph, moved: set[fx.Node], wanted: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Nodes after the lookups that are better left with them.

    The parts of a lookup that gives several results must follow it; a join of lookups nobody else reads makes
    one tensor to hand over of many, which costs less than handing over each. A sum of looked-up rows is one row of
    several, and torch adds whole rows up in a third of the time of an inference library; rows in fewer bits and the
    exact ones among them are one tensor.
    """
    rows = {node for node in moved if wanted(node)}
    followers: set[fx.Node] = set()
    joins: set[fx.Node] = set()
    for node in graph.nodes:
        if node in moved or node.op != "call_function":
            continue
        sources = [arg for arg in node.all_input_nodes if arg.op != "get_attr"]
        if node.target is operator.getitem and sources[0] in rows:
            rows.add(node)
            followers.add(node)
        elif _sums_between(node) and sources[0] in rows:
            rows.add(node)
            joins.add(node)
        elif sources and all(arg in rows and len(arg.users) == 1 for arg in sources):
            if _name(node) in _FLATVIEWS:
                rows.add(node)
            elif (_name(node) in _JOINS and len(sources) > 1) or is_pooling(node) or _is_sum(node, sources):
                rows.add(node)
                joins.add(node)
    # Views that no join took up stay in the dense part, where they are free.
    chosen = followers | joins
    for join in joins:
        chosen |= {node for node in ancestors([join]) if node in rows}
    return chosen


def _sums_between(node: fx.Node) -> bool:
    """Whether the node is a sum or mean over all dimensions between the first and the last."""
    if not is_call(node, _aten.sum.dim_IntList, _aten.mean.dim) or node.kwargs or len(node.args) != 2:
        return False
    source, dims = node.args
    assert isinstance(source, fx.Node)
    between = list(range(1, value(source).ndim - 1))
    return isinstance(dims, (list, tuple)) and list(dims) == between != []


def _boundary(graph: fx.Graph, moved: set[fx.Node]) -> list[fx.Node]:
    """The tensors handed over: inputs and moved results that the dense part reads."""
    passed = []
    for node in graph.nodes:
        if node.op == "placeholder" or node in moved:
            outside = [user for user in node.users if user not in moved]
            if isinstance(node.meta.get("val"), Tensor) and any(_reads_values(user) for user in outside):
                passed.append(node)
    sizes = {_symbol(size) for node in passed for size in node.meta["val"].shape}
    for node in _sizes_read(graph, moved):
        if _name(node) == "sym_size" and _symbol(node.meta["val"]) not in sizes:
            source = node.args[0]
            if isinstance(source, fx.Node) and source not in passed and _available(source, moved):
                passed.append(source)
                sizes |= {_symbol(size) for size in source.meta["val"].shape}
    return passed


def _sizes_read(graph: fx.Graph, moved: set[fx.Node]) -> list[fx.Node]:
    """The sizes, and sums and products of sizes, that the dense part reads, in graph order."""
    read: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if _is_size(node) and any(user not in moved or user in read for user in node.users):
            read.add(node)
    return [node for node in graph.nodes if node in read]


def _is_size(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.meta.get("val"), (int, torch.SymInt))


def _reads_values(user: fx.Node) -> bool:
    return _name(user) != "sym_size"


def _available(node: fx.Node, moved: set[fx.Node]) -> bool:
    return node.op == "placeholder" or node in moved


def _symbol(size: object) -> object:
    """A size as something that compares equal exactly when the sizes always are."""
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _front(gm: fx.GraphModule, moved: set[fx.Node], passed: list[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    needed = moved | {arg for node in moved for arg in node.all_input_nodes if arg.op == "get_attr"}
    for node in gm.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = graph.node_copy(node, lambda old: copies[old])
    graph.output(tuple(copies[node] for node in passed))
    return fx.GraphModule(gm, graph, "Lookups")


def _rest(gm: fx.GraphModule, moved: set[fx.Node], passed: list[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for index, node in enumerate(passed):
        copies[node] = graph.placeholder(f"input_{index}")
        copies[node].meta["val"] = node.meta["val"]
    symbols: dict[object, tuple[fx.Node, int]] = {}
    for node in passed:
        for axis, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt):
                symbols.setdefault(_symbol(size), (copies[node], axis))

    def size_of(node: fx.Node) -> fx.Node | None:
        """A size read off a tensor that was handed over, in place of one that was not."""
        home = symbols.get(_symbol(node.meta.get("val"))) if _name(node) == "sym_size" else None
        if home is None:
            return None
        copy = graph.call_function(_aten.sym_size.int, home)
        copy.meta["val"] = node.meta["val"]
        return copy

    kept = set(_sizes_read(gm.graph, moved))
    for node in gm.graph.nodes:
        if node.op == "placeholder" or node in copies:
            continue
        if node not in moved or node in kept:
            copies[node] = size_of(node) or graph.node_copy(node, lambda old: copies[old])
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return fx.GraphModule(gm, graph, "Dense")
