"""The forms worth measuring for a table, the coarsest first."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import fx

from ...program import Program
from ..projection import FactorTables
from ..quantization import QuantizeTables
from ..reads import find_tables
from ..sharing import ComposeTables, ProductQuantizeTables, ShareEmbeddings
from ..tables import OnTables

__all__ = ["WAYS", "Way", "in_form"]

_HOT = 0.05


class Way(NamedTuple):
    """Techniques applied one after the other, each to what the one before made of the table.

    `times` is how many times smaller that is, about, for rows of 32; `learned` says that it takes many passes over the table.
    """

    steps: tuple[OnTables, ...] = ()
    times: float = 1.0
    learned: bool = False


def _way(times: float, *steps: OnTables, learned: bool = False) -> Way:
    return Way(tuple(replace(step, least_bytes=0) for step in steps), times, learned)


def _shared(times: float, keep: float) -> Way:
    return _way(times, ShareEmbeddings(keep=keep), QuantizeTables(8), learned=True)


WAYS: tuple[Way, ...] = (
    _shared(25, 0.03),
    _shared(20, 0.06),
    _way(16, ComposeTables(1 / 16), learned=True),
    _shared(14, 0.125),
    _shared(9, 0.25),
    _way(8, ComposeTables(1 / 8), learned=True),
    _way(16, ProductQuantizeTables(4)),
    _way(11, FactorTables(0.5), QuantizeTables(4)),
    _way(8, ProductQuantizeTables(2)),
    _way(6.4, QuantizeTables(4)),
    _way(5.3, FactorTables(0.5), QuantizeTables(8)),
    _shared(5.3, 0.5),
    _way(4.2, QuantizeTables(4, hot=_HOT)),
    _way(3.2, QuantizeTables(8)),
    _way(2, FactorTables(0.5)),
    _way(2.5, QuantizeTables(8, hot=_HOT)),
    _way(1.5, ShareEmbeddings()),
    _way(2, QuantizeTables(16)),
)


def in_form(program: Program, name: str, way: Way) -> Program | None:
    """The program with the table of this name held so, or None where a technique refuses."""
    names: tuple[str, ...] = (name,)
    for technique in way.steps:
        before = _names(program)
        applied = replace(technique, only=names).apply(program)
        if not applied.changes:
            return None
        program = program.with_model(applied.model)
        names = tuple(new for new in _names(program) if new not in before)
    return program


def _names(program: Program) -> list[str]:
    assert isinstance(program.model, fx.GraphModule)
    return [table.name for table in find_tables(program.model)]
