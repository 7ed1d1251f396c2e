"""Which rank holds which rows of which table, and what travels for it: plain data, the same on every rank."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from ...plain import dumps, from_plain, loads, to_plain
from ...wording import amount, clean, share

__all__ = ["Form", "Piece", "Placed", "ShardPlan", "Way"]

SCHEMA = 1

Way = Literal["whole", "table", "rows"]
"""Whole on every rank, whole on one rank, or some rows on each."""

Form = Literal["rows", "sums"]
"""What comes back for a lookup: rows, once for all who ask for them in a batch, or one vector for each bag and rank."""


@dataclass(frozen=True)
class Piece:
    """Rows `start` to below `stop` of a table, which one rank holds."""

    start: int
    stop: int
    rank: int


@dataclass(frozen=True)
class Placed:
    """Where a table is: its pieces, in order of their rows, one at most for each rank; whole on every rank, none.

    `hot` are rows that every rank holds as well, ascending, which take the share `hot_reads` of what was read. `forms` says of each lookup
    what comes back. Per sample, measured on the traffic that the plan was made from: `reads` ids, and the bytes that a rank sends for
    them (`asked`) and gets (`answered`), on average over ranks and what stays on a rank left out. `reason` says why it is whole.
    """

    name: str
    way: Way
    rows: int
    row_bytes: int
    pieces: tuple[Piece, ...] = ()
    hot: tuple[int, ...] = ()
    forms: tuple[Form, ...] = ()
    reads: float = 0.0
    hot_reads: float = 0.0
    asked: float = 0.0
    answered: float = 0.0
    reason: str = ""

    def bytes_on(self, rank: int) -> int:
        """Bytes of its rows that a rank holds."""
        if self.way == "whole":
            return self.rows * self.row_bytes
        held = sum(piece.stop - piece.start for piece in self.pieces if piece.rank == rank)
        return (held + len(self.hot)) * self.row_bytes

    def part(self, rank: int) -> Piece:
        """The rows that a rank holds, none of them if so."""
        return next((piece for piece in self.pieces if piece.rank == rank), Piece(0, 0, rank))


@dataclass(frozen=True)
class ShardPlan:
    """Tables over `world` ranks; `dense_bytes` of other constants are on every rank.

    Printed it is a table: what each rank holds, and what a sample sends over the network. `samples` were seen in `batches`, and what travels depends
    on how many are asked for at once, since a row is sent once for a batch. `per_call` bytes go from each rank to each other
    one with every call.

    Example:
        >>> held = Placed("users", "rows", 10, 64, (Piece(0, 5, 0), Piece(5, 10, 1)), (7,), ("rows",), 1.0, 0.25, 1.5, 24.0)
        >>> print(ShardPlan(2, (held,), 1024, 512, 8, 16))
        2 ranks, from 512 samples in 8 batches: 25.5 B a sample and rank over the network, and 16 B to each other rank with every call
        | table | rows | bytes | held | hot rows | reads a sample | comes back as | asked a sample | answered a sample |
        |---|--:|--:|---|--:|--:|---|--:|--:|
        | users | 10 | 640 B | some rows on each | 1 (25.0 % of reads) | 1.00 | rows | 1.5 B | 24 B |
        | all else | | 1.00 KiB | whole on each | | | | | |
        rank 0 holds 1.38 KiB, rank 1 holds 1.38 KiB
    """

    world: int
    tables: tuple[Placed, ...]
    dense_bytes: int
    samples: int
    batches: int
    per_call: int

    @property
    def sharded(self) -> tuple[Placed, ...]:
        """The tables that are not whole on every rank."""
        return tuple(table for table in self.tables if table.way != "whole")

    @property
    def per_sample(self) -> float:
        """Bytes over the network for one sample: what its rank sends and gets, but for what goes with every call."""
        return sum(table.asked + table.answered for table in self.tables)

    def bytes_on(self, rank: int) -> int:
        """Bytes of constants that a rank holds."""
        return self.dense_bytes + sum(table.bytes_on(rank) for table in self.tables)

    @property
    def digest(self) -> bytes:
        """32 bytes that are the same for the same plan."""
        return hashlib.sha256(self.to_json().encode()).digest()

    def to_json(self) -> str:
        """The plan as a text, for the other ranks."""
        return dumps({"schema": SCHEMA, **to_plain(self, "plan")})

    @classmethod
    def from_json(cls, text: str) -> ShardPlan:
        """The plan of such a text. Raises `InputError` at any other."""
        return from_plain(cls, loads(text, "plan", SCHEMA), "plan")

    def __str__(self) -> str:
        head = (
            f"{self.world} ranks, from {self.samples:,} samples in {self.batches:,} batches: {_bytes(self.per_sample)} a sample and rank over "
            f"the network, and {amount(self.per_call)} to each other rank with every call"
        )
        lines = [
            head,
            "| table | rows | bytes | held | hot rows | reads a sample | comes back as | asked a sample | answered a sample |",
            "|---|--:|--:|---|--:|--:|---|--:|--:|",
            *map(_line, self.sharded),
        ]
        left = [table for table in self.tables if table.way == "whole"]
        rest = self.dense_bytes + sum(table.rows * table.row_bytes for table in left)
        lines.append(f"| all else | | {amount(rest)} | whole on each | | | | | |")
        held = (f"rank {rank} holds {amount(self.bytes_on(rank))}" for rank in range(self.world))
        return "\n".join([*lines, ", ".join(held)])


def _line(table: Placed) -> str:
    ranks = ", ".join(str(piece.rank) for piece in table.pieces)
    where = f"on rank {ranks}" if table.way == "table" else "some rows on each"
    hot = f"{len(table.hot):,} ({share(table.hot_reads)} of reads)" if table.hot else ""
    back = " and ".join(dict.fromkeys(table.forms))
    return (
        f"| {clean(table.name)} | {table.rows:,} | {amount(table.rows * table.row_bytes)} | {where} | {hot} | {table.reads:.2f} | {back} | "
        f"{_bytes(table.asked)} | {_bytes(table.answered)} |"
    )


def _bytes(value: float) -> str:
    return f"{value:.3g} B" if value and value < 100 else amount(round(value))
