"""What one rank computes by itself, from its inputs to its outputs, but for the rows that others hold."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx

from ...artifact import digest_of
from ...errors import InputError
from ...graph import constant
from .channels import Asked, Held, channels_of, hold
from .graphs import front_of, rest_of
from .plan import Placed, ShardPlan
from .quick import Quick
from .tables import LookedUpTable, find_tables

__all__ = ["LocalPart"]


class LocalPart:
    """What a rank computes by itself: which rows are looked up, what is asked and answered, and the rest."""

    def __init__(self, gm: fx.GraphModule, plan: ShardPlan, rank: int, *, copied: bool) -> None:
        """The part of a rank; `copied` has it hold copies of its rows, so that the tables can go."""
        tables = [(table, placed) for table, placed in _matched(gm, plan) if placed.way != "whole"]
        kept: list[Held] = [hold(table, placed, rank, copied=copied) for table, placed in tables]
        found = channels_of(tables, plan.world)
        self.channels = [channel for channel, _ in found]
        self.held = [kept[number] for _, number in found]
        self._wanted = list(dict.fromkeys(node for channel in self.channels for node in channel.operands))
        self._given = [node for channel in self.channels for node in channel.results]
        self._front = Quick(front_of(gm, self._wanted))
        self._rest = Quick(rest_of(gm, self._given))

    def digest(self) -> bytes:
        """32 bytes that are the same on all ranks of one model: of its graph, and of all that is whole on every rank."""
        found = hashlib.sha256()
        for gm in (self._front.graph, self._rest.graph):
            found.update("\n".join(node.format_node() or "" for node in gm.graph.nodes).encode())
            for node in gm.graph.nodes:
                tensor = constant(gm, node)
                if tensor is not None:
                    found.update(digest_of(tensor).encode())
        return found.digest()

    def values(self, flat: Sequence[Tensor]) -> Mapping[fx.Node, Any]:
        """What lookups take, of one batch."""
        return dict(zip(self._wanted, self._front(*flat), strict=True))

    def asked(self, values: Mapping[fx.Node, Any]) -> list[Asked]:
        """What each channel asks for. Raises `IdOutOfRangeError` at an id that its table does not have."""
        return [channel.ask(values) for channel in self.channels]

    def nothing(self) -> list[Asked]:
        """What a rank without a batch asks for."""
        return [channel.nothing() for channel in self.channels]

    def outputs(
        self,
        flat: Sequence[Tensor],
        values: Mapping[fx.Node, Any],
        asked: Sequence[Asked],
        answers: Sequence[Sequence[Tensor]],
    ) -> tuple[Tensor, ...]:
        """The graph's outputs, from the answers to each channel by rank."""
        looked_up: dict[fx.Node, Tensor] = {}
        for channel, held, one, answer in zip(self.channels, self.held, asked, answers, strict=True):
            looked_up |= channel.finish(one, answer, held, values)
        return self._rest(*flat, *(looked_up[node] for node in self._given))


def _matched(gm: fx.GraphModule, plan: ShardPlan) -> list[tuple[LookedUpTable, Placed]]:
    """The tables of the graph with their places. Raises `InputError` where the plan is for others."""
    only = {placed.name for placed in plan.sharded}
    found = {table.name: table for table in find_tables(gm, only=only)}
    made = []
    for placed in plan.tables:
        table = found.get(placed.name)
        fit = table is not None and (table.rows, table.row_bytes) == (placed.rows, placed.row_bytes)
        if fit and placed.way != "whole":
            assert table is not None
            covered = [0, *(piece.stop for piece in placed.pieces)]
            fit = (
                not table.reason
                and len(placed.forms) == len(table.lookups)
                and all(
                    form == "rows" or lookup.sums
                    for form, lookup in zip(placed.forms, table.lookups, strict=True)
                )
                and [piece.start for piece in placed.pieces] == covered[:-1]
                and covered[-1] == table.rows
                and len({piece.rank for piece in placed.pieces} & set(range(plan.world)))
                == len(placed.pieces)
            )
        if not fit or table is None:
            raise InputError(
                f"the plan is for another model: of {placed.name!r:.80} it has {placed.rows:,} rows of {placed.row_bytes} bytes on "
                f"{len(placed.pieces)} ranks, and the graph {'no such table' if table is None else f'{table.rows:,} of {table.row_bytes}'}"
            )
        made.append((table, placed))
    return made
