"""Which nodes may be moved, merged or dropped: those whose result depends on their arguments alone."""

from __future__ import annotations

from torch import fx
from torch._ops import OpOverload

from ...graph import is_random, is_written

__all__ = ["is_pure", "unsteady", "writes"]


def is_pure(node: fx.Node) -> bool:
    """Whether equal arguments always give an equal result, and nothing else happens."""
    if node.op != "call_function":
        return False
    if isinstance(node.target, OpOverload):
        return not is_written(node) and not is_random(node)
    return getattr(node.target, "__module__", "") == "_operator"


def writes(gm: fx.GraphModule) -> bool:
    """Whether any node of the graph writes into one of its arguments."""
    return any(is_written(node) for node in gm.graph.nodes)


def unsteady(gm: fx.GraphModule) -> str:
    """Why what was seen of the graph's values may not hold, or nothing."""
    return "the graph writes in place: values seen may change" if writes(gm) else ""
