"""Which rows have one basis: flows, the leaves that they come from, and the groups that they are joined to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ...graph import value
from ...places import named
from ..reads import Table

__all__ = ["Flow", "Group", "Groups", "Leaf", "Leaves", "Part"]


@dataclass(frozen=True)
class Part:
    """Columns of a row of one leaf's group."""

    width: int
    leaf: int


@dataclass(frozen=True)
class Flow:
    """An axis made of parts; `products` where each element is a product of two columns, to be summed over all of the axis."""

    axis: int
    parts: tuple[Part, ...]
    products: bool = False

    @property
    def width(self) -> int:
        """The size of the axis."""
        return sum(part.width for part in self.parts)


@dataclass(frozen=True, eq=False)
class Leaf:
    """Where rows come from: a table, or a value that `user` reads along `axis` beside rows of tables."""

    node: fx.Node
    axis: int
    width: int
    table: Table | None = None
    user: fx.Node | None = None


@dataclass
class Group:
    """Tables and entries of one basis, and what reads them."""

    width: int
    leaves: list[int] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    lookups: int = 0
    entries: list[Leaf] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    contracted: bool = False
    bent: bool = False
    maps: list[tuple[fx.Node, int]] = field(default_factory=list)
    """Linear maps that read rows of it, each with the first column of their weights that does."""


class Leaves:
    """Leaves joined to groups, and why some stay as they are: reasons may be given before leaves are joined."""

    def __init__(self) -> None:
        self.of: dict[fx.Node, Flow] = {}
        self.leaves: list[Leaf] = []
        self.reasons: dict[int, list[str]] = {}
        self._above: list[int] = []

    def add(self, leaf: Leaf) -> int:
        """A leaf, alone in its group; its number."""
        self.leaves.append(leaf)
        self._above.append(len(self._above))
        return len(self.leaves) - 1

    def root(self, leaf: int) -> int:
        """The leaf that stands for the group."""
        while self._above[leaf] != leaf:
            leaf = self._above[leaf]
        return leaf

    def join(self, *leaves: int) -> None:
        """Makes one group of those of these leaves."""
        first, *others = sorted({self.root(leaf) for leaf in leaves})
        for other in others:
            self._above[other] = first

    def pair(self, left: Flow, right: Flow) -> bool:
        """Whether the parts of two flows are of the same widths: they have one basis then."""
        if [part.width for part in left.parts] != [part.width for part in right.parts]:
            return False
        for one, other in zip(left.parts, right.parts, strict=True):
            self.join(one.leaf, other.leaf)
        return True

    def block(self, flow: Flow, reason: str) -> None:
        """These rows stay as they are."""
        for part in flow.parts:
            self.reasons.setdefault(part.leaf, []).append(reason)


class Groups(Leaves):
    """Groups of tables, and what is known of them."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[fx.Node] = []
        self._contracted: set[int] = set()
        self._bent: set[int] = set()

    def bend(self, flow: Flow) -> None:
        """A constant row added to these rows does not come out as it went in: they are not centred."""
        self._bent |= {part.leaf for part in flow.parts}

    def contract(self, *flows: Flow) -> None:
        """Inner products of these rows are read: they are turned, no more."""
        self._contracted |= {part.leaf for flow in flows for part in flow.parts}

    def groups(self) -> dict[int, Group]:
        """Every group with a table in it, by the leaf that stands for it, in the graph's order."""
        found: dict[int, Group] = {}
        for index, leaf in enumerate(self.leaves):
            group = found.setdefault(self.root(index), Group(leaf.width))
            group.leaves.append(index)
            group.reasons += self.reasons.get(index, [])
            group.contracted |= index in self._contracted
            group.bent |= index in self._bent
            if leaf.table is None:
                group.entries.append(leaf)
                if value(leaf.node).ndim - leaf.axis > 2 or value(leaf.node).dtype is not torch.float32:
                    group.reasons.append(f"meets {named(leaf.node)}, which no product of matrices would turn")
            else:
                group.lookups += 1
                if all(leaf.table is not table for table in group.tables):
                    group.tables.append(leaf.table)
        for node in self.maps:
            start = 0
            source: Any = node.args[0]
            for part in self.of[source].parts:
                found[self.root(part.leaf)].maps.append((node, start))
                start += part.width
        return {root: group for root, group in found.items() if group.tables}
