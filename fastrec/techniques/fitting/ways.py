"""The forms worth measuring for a table, the coarsest first."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from ...program import Program
from ..projection import FactorTables
from ..quantization import QuantizeTables
from ..reads import find_tables
from ..sharing import ComposeTables, ProductQuantizeTables, ShareEmbeddings
from ..tables import OnTables

__all__ = ["WAYS", "Way", "in_form"]

Way = tuple[OnTables, ...]
"""Techniques applied one after the other: each to what the one before made of the table."""

_HOT = 0.05

WAYS: tuple[Way, ...] = tuple(
    tuple(replace(technique, least_bytes=0) for technique in way)
    for way in (
        *((ShareEmbeddings(keep=keep), QuantizeTables(8)) for keep in (0.03, 0.06)),
        (ComposeTables(1 / 16),),
        *((ShareEmbeddings(keep=keep), QuantizeTables(8)) for keep in (0.125, 0.25)),
        (ComposeTables(1 / 8),),
        (ProductQuantizeTables(4),),
        (FactorTables(0.5), QuantizeTables(4)),
        (ProductQuantizeTables(2),),
        (QuantizeTables(4),),
        (FactorTables(0.5), QuantizeTables(8)),
        (ShareEmbeddings(keep=0.5), QuantizeTables(8)),
        (QuantizeTables(4, hot=_HOT),),
        (QuantizeTables(8),),
        (FactorTables(0.5),),
        (QuantizeTables(8, hot=_HOT),),
        (ShareEmbeddings(),),
        (QuantizeTables(16),),
    )
)


def in_form(program: Program, name: str, way: Way) -> Program | None:
    """The program with the table of this name held so, or None where a technique refuses."""
    names: tuple[str, ...] = (name,)
    for technique in way:
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
