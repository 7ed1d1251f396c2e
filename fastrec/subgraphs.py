"""What nodes come from, and the part of a graph that computes them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import fx

__all__ = ["past", "subgraph"]


def past(nodes: Iterable[fx.Node], given: Collection[fx.Node] = ()) -> list[fx.Node]:
    """These nodes and all that they come from, in the order of the graph; not `given` ones, and not what only those come from."""
    found, left = set[fx.Node](), list(nodes)
    beyond = frozenset(given)
    while left:
        node = left.pop()
        if node not in found and node not in beyond:
            found.add(node)
            left.extend(node.all_input_nodes)
    return sorted(found)


def subgraph(
    gm: fx.GraphModule,
    outputs: Sequence[fx.Node],
    given: Sequence[fx.Node] = (),
    effects: Sequence[fx.Node] = (),
) -> fx.GraphModule:
    """The part of a graph that computes these outputs, and `effects`, from all of its inputs and the values of `given` nodes behind them.

    Every tensor is shared with the graph.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node)
    for number, node in enumerate(given):
        copies[node] = graph.placeholder(f"given_{number}")
        copies[node].meta.update(node.meta)
    for node in past([*outputs, *effects], given):
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    graph.lint()
    return fx.GraphModule(gm, graph)
