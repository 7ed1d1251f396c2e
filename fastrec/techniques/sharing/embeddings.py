"""Embedding tables of which what is equal, or nearly so, is kept once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, fx

from ...budget import Budget
from ...graph import add_constant
from ...program import Program
from ..base import Applied, Change, Skip, Technique
from ..indirect import is_place, read_by_map
from ..reads import Table
from ..settings import check_known, check_share
from ..tables import OnTables, Traffic
from .equal import row_labels
from .fewer import Fewer, fewer_rows
from .parameters import share_parameters
from .pools import Pool, pools
from .whole import follow, get, share_whole

__all__ = ["ShareEmbeddings"]

_MILDER = (0.5, 0.75)


@dataclass(frozen=True)
class ShareEmbeddings(OnTables):
    """Keep what is equal in embedding tables once; with `keep` below 1 what is nearly so as well.

        x_v  =  U[p_v]          U (K, d), p (V,) int32, K < V

    With `keep=1`, the default, nothing changes a bit: tables that hold the same bits are one, also where the other is an
    output matrix (weights tied in training and stored twice); rows that hold the same bits, in one table or in several of one
    width, are kept once where that takes less than the map p, 4 bytes an id (`pools`). What is one tensor already stays so.

    With `keep` below 1 this share of each table's different rows is kept. Half of them are those that calibration looks up
    most (the example, without any), of those it looks up at all, exactly as they are; rows of zeros (padding) are too. The
    others are centroids of the remaining rows, by k-means weighted with 1 + how often each is looked up (`clusters`).

    The second lookup takes time: it is a setting for memory. Tables stay, each with its reason, that are read by more than
    lookups, smaller than `least_bytes`, not float32, looked up by a map already or, with `keep` below 1, not finite. A model that could
    not be captured has its equal parameter matrices made one.

    Raises `InputError` for other settings, `TechniqueError` for calibration that the model does not take. Cost: 2 s for a
    million rows of 64; with `keep=0.25` 40 s.

    Source: weight sharing by clusters as in Han et al., "Deep Compression", 2016, of rows in place of entries.

    Example:
        >>> ShareEmbeddings().exact, ShareEmbeddings(keep=0.25).exact
        (True, False)
    """

    name: ClassVar[str] = "share_embeddings"
    rule: ClassVar[str] = "share embeddings"
    modules: ClassVar[bool] = True

    keep: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "keep", one=True)

    @property
    def exact(self) -> bool:
        """Whether every row is kept as it is."""
        return self.keep == 1

    @classmethod
    def asked_by(cls, budget: Budget | None) -> None:
        """Never: the second lookup takes time, so it is for those who ask for it."""

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - less is lost by these, whatever was changed
        """More rows, and in the end all."""
        return tuple(replace(self, keep=keep) for keep in (*_MILDER, 1.0) if keep > self.keep)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """All different rows, and a quarter of them."""
        return cls(), cls(keep=0.25)

    def apply(self, program: Program) -> Applied:
        """The program's model with shared tables; its own where nothing is shared."""
        if isinstance(program.model, fx.GraphModule):
            return super().apply(program)
        model, names, changes, skipped = share_parameters(program, self.rule, self.least_bytes, self.only)
        check_known(self, "only", names, "table")
        if not self.exact:
            reason = "it could not be captured: parameters that are equal are shared, rows are not"
            skipped.append(Skip(self.rule, type(program.model).__name__, reason))
        return Applied(model, tuple(changes), tuple(skipped))

    def refusal(self, gm: fx.GraphModule, table: Table) -> str:
        """Rows that have no mean, and those that are shared already."""
        if any(is_place(gm, read.ids) for read in table.reads):
            return "its rows are looked up by a map already"
        return "" if self.exact or bool(table.tensor.isfinite().all()) else "it holds NaN or infinities"

    def take(
        self, gm: fx.GraphModule, tables: Sequence[Table], traffic: Traffic
    ) -> tuple[list[Change], list[Skip]]:
        """Whole tables first; then their rows."""
        counts = {} if self.exact else {table.name: traffic(table) for table in tables}
        changes, left = share_whole(gm, tables, counts, self.rule)
        skipped: list[Skip] = []
        if not self.exact:
            left = [table for table in left if not self._cluster(gm, table, counts, changes)]
        widths = dict.fromkeys(table.tensor.shape[1] for table in left)
        for width in widths:
            alike = [table for table in left if table.tensor.shape[1] == width]
            labels = row_labels([table.tensor for table in alike])
            for pool in pools(labels, width):
                members = [alike[k] for k in pool.members]
                if pool.plain and len(members) == 1:
                    different = len(torch.unique(labels[pool.members[0]]))
                    skipped.append(Skip(self.rule, members[0].name, _why_not(members[0], different)))
                else:
                    changes += _together(gm, members, pool, self.rule)
        return changes, skipped

    def _cluster(
        self, gm: fx.GraphModule, table: Table, counts: Mapping[str, Tensor], changes: list[Change]
    ) -> bool:
        """Whether the table is now held in fewer rows; those that would not be smaller are not."""
        made = fewer_rows(table.tensor, counts[table.name], self.keep)
        if made is None:
            return False
        read_by_map(gm, table, add_constant(gm, f"{table.name}_rows", made.rows), made.places)
        changes.append(_change(self.rule, table, made))
        return True


def _change(rule: str, table: Table, made: Fewer) -> Change:
    size, width = table.tensor.shape
    detail = (
        f"{made.different} different rows of ({size}, {width}) by {len(made.rows)}: {table.tensor.nbytes} -> {made.nbytes} "
        f"bytes, {made.taken} of {made.seen} lookups in calibration exact, rows off by {made.error:.1%} of their size"
    )
    return Change(rule, table.name, detail, made.nbytes)


def _together(gm: fx.GraphModule, members: Sequence[Table], pool: Pool, rule: str) -> list[Change]:
    """Every member reads the rows of the pool; what was one table is one constant."""
    first = members[0]
    grown = any(len(rows) for rows in pool.rows[1:])
    added = 0
    if pool.plain and not grown:
        rows = get(gm, first.name)
    else:
        every = torch.cat([table.tensor[mine] for table, mine in zip(members, pool.rows, strict=True)])
        rows, added = add_constant(gm, f"{first.name}_rows", every), every.nbytes
    changes = []
    for table, mine, places in zip(members, pool.rows, pool.places, strict=True):
        size, width = table.tensor.shape
        before, own = table.tensor.nbytes, 4 * width * len(mine)
        if places is not None:
            read_by_map(gm, table, rows, places)
            own, added = own + 4 * size, added + 4 * size
        elif grown:
            for read in table.reads:
                read.node.args = (rows, *read.node.args[1:])
            follow(gm, first.name, str(rows.target), *first.tensor.shape)
        else:
            continue
        beside = "" if table is first else f", the others are rows of {first.name}"
        kept = (
            f"{len(mine)} rows of ({size}, {width}) are kept"
            if places is not None
            else "it is kept, others' rows behind it"
        )
        detail = f"{kept}{beside}: {before} -> {own} bytes"
        changes.append(Change(rule, table.name, detail, added))
        added = 0
    return changes


def _why_not(table: Table, different: int) -> str:
    size, width = table.tensor.shape
    tied = f"; it is one tensor for {len(table.reads)} lookups, and stays so" * (len(table.reads) > 1)
    if different == size:
        return f"its {size} rows are all different{tied}"
    saved = 4 * width * (size - different)
    return f"{different} of its {size} rows are different: that saves {saved} bytes, a map takes {4 * size}{tied}"
