"""The forms worth measuring for a table, from as many bytes as it has to a few."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from ...program import Program
from ..quantization import QuantizeTables
from ..reads import find_tables
from ..tables import OnTables

__all__ = ["WAYS", "Way", "in_form"]

Way = tuple[OnTables, ...]
"""Techniques applied one after the other: each to what the one before made of the table."""

_HOT = (0.02, 0.05, 0.1, 0.2)

WAYS: tuple[Way, ...] = tuple(
    tuple(replace(technique, least_bytes=0) for technique in way)
    for way in (
        *((QuantizeTables(bits),) for bits in (16, 8, 4)),
        *((QuantizeTables(bits, hot=hot),) for bits in (8, 4) for hot in _HOT),
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
