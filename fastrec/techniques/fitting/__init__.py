"""All tables of a graph in so many bytes, each in the form that costs the answers least for what it saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, fx

from ...budget import Budget
from ...cost import table_bytes
from ...program import Program
from ...rows import count_rows, take_rows
from ..base import Applied, Change, Skip, Technique, graph_of
from ..quantization.sensitivity import answers, moved
from ..reads import Table, find_tables
from ..settings import check_whole, named
from ..traffic import batches_of
from .choice import Cost, cheapest
from .ways import WAYS, Way, in_form

__all__ = ["FitTables"]

_RULE = "fit tables"
_MORE = (1.25, 1.6, 2.0, 3.0)
_BATCHES = 16
_PARTS = (2, 4, 8, 16)
# How many times smaller a form may be than what is asked of a table that is most of all, and the most that is asked.
_NEAR, _COARSE = (0.6, 5.0), 16.0
# An answer that moves by less of its spread has not moved: finer forms are not tried.
_NOTHING = 1e-4


@dataclass(frozen=True)
class FitTables(Technique):
    """Bring what the tables of a graph take under `bytes`, each table in a form of its own.

        min  sum_t L_t(f_t)   subject to   sum_t B_t(f_t) <= bytes

    f_t is a form of table t (as it is, 16, 8 or 4 bits, shared rows, ... : `ways`), B_t what it takes, and L_t the
    squared movement of the answers when t alone is held so, relative to their variance, on calibration that the form was not
    fitted to: small movements of different tables add up squared. Every form of every table is made and measured; of a table that is more than half of all
    those that are about as small as is asked, and of tables above `learned_bytes` those that need no k-means. Tables under
    `least_bytes` stay as they are.

    A limit that no choice reaches gives the smallest there is. Raises `InputError` for a limit that is no whole number from
    0, `TechniqueError` for a model that was not captured. Cost: for each table and form its making and a run of the batches: for a
    table of 10 MB a minute, about.

    Example:
        >>> FitTables(1 << 20).exact
        False
    """

    name: ClassVar[str] = "fit_tables"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    fitted: ClassVar[bool] = True
    saves: ClassVar[Literal["time", "bytes"]] = "bytes"

    bytes: int = 64 << 20
    least_bytes: int = 1 << 10
    learned_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        check_whole(self, "bytes", "least_bytes", "learned_bytes")

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    @classmethod
    def asked_by(cls, budget: Budget | None) -> Self | None:
        """Where tables have a limit."""
        return None if budget is None or budget.bytes is None else cls(budget.bytes)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """As little as can be."""
        return (cls(bytes=0),)

    @classmethod
    def rungs(cls, program: Program) -> tuple[Self, ...]:
        """A half to a sixteenth of what the tables take, each in a form of its own size or larger."""
        if not isinstance(program.model, fx.GraphModule):
            return ()
        return tuple(cls(bytes=table_bytes(program.model) // part) for part in _PARTS)

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - more bytes lose less, whatever was changed
        """More bytes, as far as the tables take more now."""
        assert isinstance(program.model, fx.GraphModule)
        now = table_bytes(program.model)
        return tuple(replace(self, bytes=int(self.bytes * more)) for more in _MORE if self.bytes * more < now)

    def apply(self, program: Program) -> Applied:
        """The graph with its tables in these forms, sharing every other tensor; the program's own where they take no more."""
        given = graph_of(program, self)
        before = table_bytes(given)
        reason = f"the tables take {before:,} bytes" if before <= self.bytes else ""
        if given.meta.get("fitted"):
            reason = "its tables were fitted before"
        if reason:
            return Applied(given, skipped=(Skip(_RULE, "", reason),))
        tables, skipped = self._tables(given)
        whole = sum(table.tensor.nbytes for table in tables)
        options = [
            _options(program, table, self._ways(table, before, 2 * table.tensor.nbytes > whole))
            for table in tables
        ]
        fixed = before - sum(ways[0].cost.bytes for ways in options)
        taken = cheapest([[option.cost for option in ways] for ways in options], self.bytes - fixed)
        chosen = [ways[w] for ways, w in zip(options, taken, strict=True)]
        made, changes = program, []
        for table, option in zip(tables, chosen, strict=True):
            formed = in_form(made, table.name, option.way) if option.way.steps else None
            if formed is not None:
                made = formed
                changes.append(Change(_RULE, table.name, _said(table, option), option.cost.bytes))
        if not changes:
            return Applied(given, (), skipped)
        assert isinstance(made.model, fx.GraphModule)
        made.model.meta["fitted"] = True
        after = table_bytes(made.model)
        if after > self.bytes:
            reason = f"no form is small enough: all tables take {after:,} bytes, {self.bytes:,} are allowed"
            skipped = (*skipped, Skip(_RULE, "", reason))
        return Applied(made.model, tuple(changes), skipped)

    def _ways(self, table: Table, before: int, most: bool) -> list[Way]:
        """The forms worth making: of a large table those that one pass makes, of one that is most of all those near what is asked."""
        asked = min(before / max(self.bytes, 1), _COARSE)
        near = [way for way in WAYS if not most or _NEAR[0] * asked <= way.times <= _NEAR[1] * asked]
        return [way for way in near if table.tensor.nbytes <= self.learned_bytes or not way.learned]

    def _tables(self, gm: fx.GraphModule) -> tuple[list[Table], tuple[Skip, ...]]:
        """The tables to choose forms for, and those that stay."""
        tables, skipped = [], []
        for table in find_tables(gm):
            small = table.tensor.nbytes < self.least_bytes
            reason = (
                f"its {table.tensor.nbytes} bytes are less than {self.least_bytes}" if small else table.reason
            )
            if reason:
                skipped.append(Skip(_RULE, table.name, reason))
            else:
                tables.append(table)
        return tables, tuple(skipped)


@dataclass(frozen=True)
class _Option:
    """A form of one table, and what it costs; no technique leaves it as it is."""

    way: Way
    cost: Cost


def _options(program: Program, table: Table, ways: Sequence[Way]) -> list[_Option]:
    """Every one of these forms that the table can be held in, as it is first, each made and measured alone."""
    assert isinstance(program.model, fx.GraphModule)
    fitting, batches = _apart(program)
    batches = batches[:: -(-len(batches) // _BATCHES)]
    right = answers(program.model, batches)
    before = table_bytes(program.model)
    options = [_Option(Way(), Cost(table.tensor.nbytes, 0.0))]
    for way in ways:
        made = in_form(fitting, table.name, way)
        if made is None:
            continue
        assert isinstance(made.model, fx.GraphModule)
        size = table.tensor.nbytes + table_bytes(made.model) - before
        off = max(map(moved, answers(made.model, batches), right), default=0.0)
        options.append(_Option(way, Cost(size, off * off)))
        if off < _NOTHING:
            break
    return options


def _apart(program: Program) -> tuple[Program, Sequence[Sequence[Tensor]]]:
    """The program with half of its traffic, and the other half: a form may know by heart the rows it was fitted to."""
    batches = batches_of(program)
    if len(batches) > 1:
        return replace(program, calibration=batches[::2]), batches[1::2]
    features = program.layout.features
    rows = torch.arange(count_rows(features, batches[0]) or 0)
    if len(rows) < 2:
        return program, batches
    known, held = (tuple(take_rows(features, batches[0], part)) for part in (rows[::2], rows[1::2]))
    return replace(program, calibration=(known,)), (held,)


def _said(table: Table, option: _Option) -> str:
    forms = ", then ".join(map(named, option.way.steps))
    times = table.tensor.nbytes / option.cost.bytes
    return f"{forms}: {times:.2f} times smaller, alone it moves the answers by {option.cost.loss**0.5:.2g} of their spread"
