"""Which tables of a graph are held in another form: the settings, the refusals and the loop of techniques that change some."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, fx

from ..graph import copy_graph, sweep
from ..program import Program
from .base import Applied, Change, Skip, Technique, graph_of
from .fusion.moves import forget_moved
from .reads import Table, find_tables
from .settings import check_known, check_names, check_whole
from .traffic import batches_of, ids_seen, row_counts

__all__ = ["OnTables", "Traffic"]

Traffic = Callable[[Table], Tensor]
"""How often calibration (the example, without any) looks up each row of a table, (V,)."""


@dataclass(frozen=True)
class OnTables(Technique):
    """Hold tables of at least `least_bytes` in another form, and look rows up in it.

    `only` names the tables to take, as changes and skips name them (None: all). A technique says what is wrong with a table
    by `refusal` and edits the graph by `take`; `rule` names its changes.
    """

    level: ClassVar[Literal["module", "graph"]] = "graph"
    rule: ClassVar[str]
    saves: ClassVar[Literal["time", "bytes"]] = "bytes"

    least_bytes: int = field(default=1 << 20, kw_only=True)
    only: tuple[str, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_whole(self, "least_bytes")
        check_names(self, "only")

    @classmethod
    def rungs(cls, program: Program) -> tuple[Self, ...]:
        """Those of the ladder, for tables of any size: whether a small one is worth it is measured."""
        return tuple(replace(rung, least_bytes=0) for rung in super().rungs(program))

    def refusal(self, gm: fx.GraphModule, table: Table) -> str:  # noqa: ARG002 - for those who override it
        """Why this form is not for the table, or nothing: nothing, unless overridden."""
        return ""

    @abc.abstractmethod
    def take(
        self, gm: fx.GraphModule, tables: Sequence[Table], traffic: Traffic
    ) -> tuple[list[Change], list[Skip]]:
        """Edits `gm` so that these tables are read in their other form; those left are named with their reasons."""

    def apply(self, program: Program) -> Applied:
        """The graph with these tables, sharing every other tensor; the program's own where none is worth it."""
        given = graph_of(program, self)
        gm = copy_graph(given)
        tables = find_tables(gm)
        check_known(self, "only", [table.name for table in tables], "table")
        chosen = [table for table in tables if self.only is None or table.name in self.only]
        reasons = {table.name: self._unfit(gm, table) for table in chosen}
        kept = [table for table in chosen if not reasons[table.name]]
        skipped = [Skip(self.rule, name, reason) for name, reason in reasons.items() if reason]
        changes, left = self.take(gm, kept, _traffic(gm, kept, program, self.name)) if kept else ([], [])
        if not changes:
            return Applied(given, (), (*skipped, *left))
        sweep(gm)
        forget_moved(gm)
        return Applied(gm, tuple(changes), (*skipped, *left))

    def _unfit(self, gm: fx.GraphModule, table: Table) -> str:
        """Why the table stays, or nothing."""
        tensor = table.tensor
        if table.name in gm.meta.get("codebooks", ()):
            return "its rows are what codes of other tables stand for"
        if table.reason:
            return table.reason
        if table.name in gm.meta.get("hot", ()):
            return "it holds the exact rows of another table"
        if tensor.dtype is not torch.float32:
            return f"it holds {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.nbytes < self.least_bytes:
            return f"its {tensor.nbytes} bytes are less than {self.least_bytes}"
        return self.refusal(gm, table)


def _traffic(gm: fx.GraphModule, tables: Sequence[Table], program: Program, technique: str) -> Traffic:
    """The batches are run once, when the first table is asked about, and before the graph is edited."""

    @cache
    def seen() -> dict[fx.Node, Tensor]:
        return ids_seen(gm, tables, batches_of(program))

    return lambda table: row_counts(table, seen(), technique)
