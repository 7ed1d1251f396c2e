"""A graph in two: what says which rows are looked up, and all that is made of them.

    outputs = rest(*inputs, *looked_up)        looked_up of front(*inputs), by whoever has the rows

Both share every tensor with the graph that they read; neither reads a table that is held in parts.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from ...graph import is_written
from ...subgraphs import subgraph

__all__ = ["front_of", "rest_of"]


def front_of(gm: fx.GraphModule, wanted: Sequence[fx.Node]) -> fx.GraphModule:
    """The graph's inputs to the values of these nodes."""
    return subgraph(gm, wanted)


def rest_of(gm: fx.GraphModule, given: Sequence[fx.Node]) -> fx.GraphModule:
    """The graph's inputs, and the values of these nodes, to its outputs."""
    outputs = gm.graph.output_node().args[0]
    assert isinstance(outputs, tuple)
    # What is written in place is read by who reads the memory.
    writes = [node for node in gm.graph.nodes if is_written(node)]
    return subgraph(gm, [node for node in outputs if isinstance(node, fx.Node)], given, writes)
