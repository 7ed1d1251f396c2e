"""Where each table goes: tables read by the same ids side by side, the results one below the other.

    segment   = [A | B | ...]      tables of equal rows read by the same ids, widths added
    stack     = [segment; segment; ...]   segments of one width (or padded to one), rows added

Figures: one thread, torch 2.13 CPU (AMD EPYC, 2 cores), 26 tables of 100k rows, 16 + 1 columns, fresh uniform
ids at each call, microseconds for all lookups with what reads them (MLP input (N, 416) copied flat, FM term,
first-order sum):

| layout                                      | N=1 | N=100 | N=1000 |
|---------------------------------------------|-----|-------|--------|
| 52 lookups                                  | 234 |  670  |  2876  |
| one row of 17                               |  26 |  232  |  1981  |
| one row padded to 20                        |  23 |  240  |  1993  |
| one row padded to 32 (two cache lines)      |  23 |  233  |  2189  |
| two stacks, 16 and 1                        |  22 |  290  |  2161  |

The gather alone: 5.6 / 139 / 980 at 17; 5.3 / 166 / 1338 at 20; 5.2 / 163 / 1520 at 32; 9.2 / 232 / 1787 for
16 and 1 apart. So a row is as wide as its tables, and never padded for alignment. `index_select` equals
`embedding` within noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...graph import is_call
from .id_columns import Size
from .lookup_tables import Lookup, Table

__all__ = ["Block", "Gather", "Segment", "Stack", "plan"]

aten = torch.ops.aten
# A gather of several id columns costs a stack of ids, an add and the cuts (measured at N=1: stack of 26
# 10 us, of 2 3.3, add 1.7, select 1.2, lookup 3.3), so it pays from this many columns on: from one matrix
# or into one `cat`, and else.
_PACKED, _APART = 3, 5
_WASTE = 4  # a table read by some of the ids joins when it is at most a quarter as wide as the widest
_PAD_SHARE, _PAD_BYTES = 16, 2**20  # padding may cost 1/16 of the stack, or 1 MiB


@dataclass
class Segment:
    """Tables side by side: `columns[i]` is where `tables[i]` starts in the row."""

    tables: list[Table]
    columns: list[int] = field(default_factory=list)
    row: int = 0

    @property
    def rows(self) -> int:
        """Rows, one per id."""
        return self.tables[0].rows

    @property
    def width(self) -> int:
        """Columns."""
        return sum(table.width for table in self.tables)

    @property
    def nbytes(self) -> int:
        """Bytes of its tables."""
        return sum(table.tensor.nbytes for table in self.tables)


@dataclass(frozen=True)
class Block:
    """A lookup, with the segment its table is in and the place of its columns there."""

    lookup: Lookup
    segment: Segment
    start: int
    stop: int


@dataclass
class Gather:
    """Lookups done by one call: those of one id column of N each, or those of the very same ids."""

    blocks: list[Block]
    columns: bool


@dataclass
class Stack:
    """Segments below each other in one table, and the gathers that read it."""

    segments: list[Segment]
    gathers: list[Gather]

    @property
    def width(self) -> int:
        """Columns."""
        return max(segment.width for segment in self.segments)

    @property
    def kept(self) -> bool:
        """Whether it is a single table, which stays where it is."""
        return len(self.segments) == 1 and len(self.segments[0].tables) == 1

    def build(self) -> Tensor:
        """The stacked table, filled table by table; unused columns are zero."""
        first = self.segments[0].tables[0].tensor
        if self.kept:
            return first
        shape = (sum(segment.rows for segment in self.segments), self.width)
        padded = any(segment.width < self.width for segment in self.segments)
        with torch.no_grad():
            stacked = (torch.zeros if padded else torch.empty)(shape, dtype=first.dtype, device=first.device)
            for segment in self.segments:
                rows = stacked[segment.row : segment.row + segment.rows]
                for table, column in zip(segment.tables, segment.columns, strict=True):
                    rows[:, column : column + table.width].copy_(table.tensor)
        return stacked


def plan(tables: Sequence[Table]) -> list[Stack]:
    """The stacks that spare lookups, each with its gathers; tables in none of them stay as they are."""
    groups = _by_width(_join([table for table in tables if table.movable]))
    groups.extend([Segment([table], [0])] for table in tables if not table.movable)
    stacks: list[Stack] = []
    for group in groups:
        together = _useful(group)
        if together:
            stacks.append(_stack(together))
        apart = [segment for segment in group if not any(segment is other for other in together)]
        stacks.extend(_stack([segment]) for segment in apart if len(segment.tables) > 1)
    return stacks


def _join(tables: list[Table]) -> list[Segment]:
    """Tables read by the same ids become columns of one row, the widest first so that like tables line up."""
    segments: list[Segment] = []
    for table in sorted(tables, key=lambda table: -table.width):
        for segment in segments:
            first = segment.tables[0]
            alike = (first.rows, first.tensor.dtype, first.tensor.device) == (
                table.rows,
                table.tensor.dtype,
                table.tensor.device,
            )
            same = table.readers == first.readers
            small = table.readers < first.readers and table.width * _WASTE <= first.width
            if alike and (same or small):
                segment.columns.append(segment.width)
                segment.tables.append(table)
                break
        else:
            segments.append(Segment([table], [0]))
    return segments


def _by_width(segments: list[Segment]) -> list[list[Segment]]:
    """Segments of one type and one width; a little narrower ones are taken along where padding is cheap."""
    groups: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda segment: -segment.width):
        tensor = segment.tables[0].tensor
        for group in groups:
            first = group[0].tables[0].tensor
            if (first.dtype, first.device) != (tensor.dtype, tensor.device):
                continue
            wide = group[0].width
            extra = sum(other.rows * (wide - other.width) for other in (*group, segment))
            extra *= tensor.element_size()
            total = sum(other.nbytes for other in (*group, segment))
            cheap = wide <= 2 * segment.width and extra <= max(_PAD_BYTES, total // _PAD_SHARE)
            if segment.width == wide or cheap:
                group.append(segment)
                break
        else:
            groups.append([segment])
    return groups


def _useful(segments: list[Segment]) -> list[Segment]:
    """The segments that some gather of several id columns reads with profit."""
    while True:
        kept: list[Segment] = []
        for blocks in _by_rows(segments).values():
            if _pays(blocks):
                kept.extend(block.segment for block in blocks)
        chosen = [segment for segment in segments if any(segment is other for other in kept)]
        if len(chosen) == len(segments):
            return chosen
        segments = chosen


def _stack(segments: list[Segment]) -> Stack:
    """Gives the segments their rows, and the lookups their gathers."""
    by_rows = _by_rows(segments)
    together = [blocks for blocks in by_rows.values() if _pays(blocks)]
    gathered = {block.lookup.node for blocks in together for block in blocks}
    gathers = [Gather(blocks, columns=True) for blocks in together]
    alone: dict[object, list[Block]] = {}
    for block in _blocks(segments):
        if block.lookup.node not in gathered:
            ids = block.lookup.ids
            alone.setdefault((id(block.segment), ids.key, ids.shape), []).append(block)
    # the segment with most lookups of its own starts at row 0: those need no offset
    count = {id(segment): 0 for segment in segments}
    for blocks in alone.values():
        count[id(blocks[0].segment)] += 1
    ordered = sorted(segments, key=lambda segment: -count[id(segment)])
    row = 0
    for segment in ordered:
        segment.row = row
        row += segment.rows
    stack = Stack(ordered, gathers)
    if not stack.kept:
        gathers.extend(Gather(blocks, columns=False) for blocks in alone.values())
    return stack


def _blocks(segments: list[Segment]) -> Iterator[Block]:
    for segment in segments:
        for table, start in zip(segment.tables, segment.columns, strict=True):
            for lookup in table.lookups:
                yield Block(lookup, segment, start, start + table.width)


def _by_rows(segments: list[Segment]) -> dict[Size, list[Block]]:
    """The lookups by one id column of N, for each N."""
    found: dict[Size, list[Block]] = {}
    for block in _blocks(segments):
        rows = block.lookup.ids.rows
        if rows is not None:
            found.setdefault(rows, []).append(block)
    return found


def _pays(blocks: list[Block]) -> bool:
    """Whether these lookups are dearer than one gather of their id columns."""
    columns = {(id(block.segment), block.lookup.ids.key): block.lookup.ids.columns[0] for block in blocks}
    if len(columns) >= _APART:
        return True
    bases = {column.base for column in columns.values()}
    packed = len(bases) == 1 and all(column.packed for column in columns.values())
    users = Counter(user for block in blocks for user in block.lookup.node.users)
    joined = [count for user, count in users.items() if is_call(user, aten.cat.default, aten.stack.default)]
    return len(columns) >= _PACKED and (packed or max(joined, default=0) >= _PACKED)
