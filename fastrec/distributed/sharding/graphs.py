"""A graph in two: what says which rows are looked up, and all that is made of them.

    outputs = rest(*inputs, *looked_up)        looked_up of front(*inputs), by whoever has the rows

Both share every tensor with the graph that they read; neither reads a table that is held in parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from ...graph import is_written

__all__ = ["front_of", "rest_of"]


def front_of(gm: fx.GraphModule, wanted: Sequence[fx.Node]) -> fx.GraphModule:
    """The graph's inputs to the values of these nodes."""
    return _copied(gm, wanted, ())


def rest_of(gm: fx.GraphModule, given: Sequence[fx.Node]) -> fx.GraphModule:
    """The graph's inputs, and the values of these nodes, to its outputs."""
    outputs = gm.graph.output_node().args[0]
    assert isinstance(outputs, tuple)
    # What is written in place is read by who reads the memory.
    writes = [node for node in gm.graph.nodes if is_written(node)]
    return _copied(gm, [node for node in outputs if isinstance(node, fx.Node)], given, writes)


def _copied(
    gm: fx.GraphModule, outputs: Sequence[fx.Node], given: Sequence[fx.Node], effects: Sequence[fx.Node] = ()
) -> fx.GraphModule:
    """The part of a graph that these outputs take, with what is given as inputs behind its own."""
    needed: set[fx.Node] = set()
    left = [*outputs, *effects]
    while left:
        node = left.pop()
        if node not in needed and node not in given:
            needed.add(node)
            left.extend(node.all_input_nodes)
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node)
    for number, node in enumerate(given):
        copies[node] = graph.placeholder(f"looked_up_{number}")
        copies[node].meta.update(node.meta)
    for node in gm.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    graph.lint()
    return fx.GraphModule(gm, graph)
