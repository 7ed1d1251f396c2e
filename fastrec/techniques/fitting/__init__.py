"""All tables of a graph in so many bytes, each in the form that costs the answers least for what it saves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from torch import fx

from ...budget import Budget
from ...cost import table_bytes
from ...errors import TechniqueError
from ...program import Program
from ..base import Applied, Change, Skip, Technique
from ..quantization.sensitivity import answers, moved
from ..reads import Table, find_tables
from ..settings import check_whole
from ..traffic import batches_of
from .choice import Cost, cheapest
from .ways import WAYS, Way, in_form

__all__ = ["FitTables"]

_RULE = "fit tables"
_MORE = (1.25, 1.6, 2.0, 3.0)
_BATCHES = 16
# An answer that moves by less of its spread has not moved: finer forms are not tried.
_NOTHING = 1e-4


@dataclass(frozen=True)
class FitTables(Technique):
    """Bring what the tables of a graph take under `bytes`, each table in a form of its own.

        min  sum_t L_t(f_t)   subject to   sum_t B_t(f_t) <= bytes

    f_t is a form of table t (as it is, 16, 8 or 4 bits, shared rows, ... : `ways`), B_t what it takes, and L_t the
    squared movement of the answers on calibration when t alone is held so, relative to their variance: small movements
    of different tables add up squared. Every form of every table is made and measured. Tables under `least_bytes` stay
    as they are.

    A limit that no choice reaches gives the smallest there is. Raises `InputError` for a limit that is no whole number from
    0, `TechniqueError` for a model that was not captured. Cost: for each table and form its making and a run of the batches.

    Example:
        >>> FitTables(1 << 20).exact
        False
    """

    name: ClassVar[str] = "fit_tables"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    fitted: ClassVar[bool] = True

    bytes: int = 64 << 20
    least_bytes: int = 1 << 10

    def __post_init__(self) -> None:
        check_whole(self, "bytes", "least_bytes")

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

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - more bytes lose less, whatever was changed
        """More bytes, as far as the tables take more now."""
        assert isinstance(program.model, fx.GraphModule)
        now = table_bytes(program.model)
        return tuple(replace(self, bytes=int(self.bytes * more)) for more in _MORE if self.bytes * more < now)

    def apply(self, program: Program) -> Applied:
        """The graph with its tables in these forms, sharing every other tensor; the program's own where they take no more."""
        if not isinstance(program.model, fx.GraphModule):
            raise TechniqueError("rewrites captured graphs: capture the program first", technique=self.name)
        before = table_bytes(program.model)
        reason = f"the tables take {before:,} bytes" if before <= self.bytes else ""
        if program.model.meta.get("fitted"):
            reason = "its tables were fitted before"
        if reason:
            return Applied(program.model, skipped=(Skip(_RULE, "", reason),))
        tables, skipped = self._tables(program.model)
        options = [_options(program, table) for table in tables]
        fixed = before - sum(ways[0].cost.bytes for ways in options)
        taken = cheapest([[option.cost for option in ways] for ways in options], self.bytes - fixed)
        chosen = [ways[w] for ways, w in zip(options, taken, strict=True)]
        made, changes = program, []
        for table, option in zip(tables, chosen, strict=True):
            if option.way:
                made = in_form(made, table.name, option.way) or made
                changes.append(Change(_RULE, table.name, _said(table, option), option.cost.bytes))
        if not changes:
            return Applied(program.model, (), skipped)
        assert isinstance(made.model, fx.GraphModule)
        made.model.meta["fitted"] = True
        after = table_bytes(made.model)
        if after > self.bytes:
            reason = f"no form is small enough: all tables take {after:,} bytes, {self.bytes:,} are allowed"
            skipped = (*skipped, Skip(_RULE, "", reason))
        return Applied(made.model, tuple(changes), skipped)

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


def _options(program: Program, table: Table) -> list[_Option]:
    """Every form the table can be held in, as it is first, each made and measured alone."""
    assert isinstance(program.model, fx.GraphModule)
    batches = batches_of(program)
    batches = batches[:: -(-len(batches) // _BATCHES)]
    right = answers(program.model, batches)
    before = table_bytes(program.model)
    options = [_Option((), Cost(table.tensor.nbytes, 0.0))]
    for way in WAYS:
        made = in_form(program, table.name, way)
        if made is None:
            continue
        assert isinstance(made.model, fx.GraphModule)
        size = table.tensor.nbytes + table_bytes(made.model) - before
        off = max(map(moved, answers(made.model, batches), right), default=0.0)
        options.append(_Option(way, Cost(size, off * off)))
        if off < _NOTHING:
            break
    return options


def _said(table: Table, option: _Option) -> str:
    forms = ", then ".join(map(str, option.way))
    times = table.tensor.nbytes / option.cost.bytes
    return f"{forms}: {times:.2f} times smaller, alone it moves the answers by {option.cost.loss**0.5:.2g} of their spread"
