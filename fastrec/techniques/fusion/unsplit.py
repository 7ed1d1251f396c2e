"""Where what is the same in all rows still meets the candidates row by row, and why."""

from __future__ import annotations

from typing import Any

from torch import fx

from ...graph import operator_name
from ..base import Skip
from .once import spread_of

__all__ = ["unsplit"]

_JOINS = frozenset(("cat", "concat", "stack"))
_OUTSIDE = "output"


def unsplit(gm: fx.GraphModule) -> list[Skip]:
    """A skip for each join or operator that reads something repeated for every row."""
    skips: list[Skip] = []
    for node in gm.graph.nodes:
        if node.op not in ("call_function", "output") or not any(map(spread_of, node.all_input_nodes)):
            continue
        skips.append(Skip("split", node.name, _reason(node)))
    return skips


def _reason(node: fx.Node) -> str:
    if node.op == _OUTSIDE:
        return "it is an answer, which has a row for each candidate"
    if operator_name(node) in _JOINS:
        readers = ", ".join(sorted({_name(user) for user in node.users}))
        return f"the join is read whole by {readers}: no rule takes its parts apart there"
    return f"{_name(node)} needs what all rows share in every row: no rule computes it from one"


def _name(node: Any) -> str:
    return "the answer" if node.op == _OUTSIDE else operator_name(node)
