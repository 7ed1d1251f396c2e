"""What rules share that put one better form in the place of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from ..base import Change

__all__ = ["replace_each"]


def replace_each(
    gm: fx.GraphModule,
    makers: Mapping[Any, Callable[[fx.GraphModule, fx.Node], fx.Node | None]],
    rule: str,
    detail: str,
) -> list[Change]:
    """Puts in the place of each call what the maker of its target emits in front of it; None leaves the call."""
    changes: list[Change] = []
    for node in list(gm.graph.nodes):
        maker = makers.get(node.target) if node.op == "call_function" else None
        if maker is None:
            continue
        with gm.graph.inserting_before(node):
            made = maker(gm, node)
        if made is not None:
            node.replace_all_uses_with(made)
            gm.graph.erase_node(node)
            changes.append(Change(rule, node.name, detail))
    return changes
