"""Rows that traffic hardly asks for share one default row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, fx

from ...graph import add_constant
from ...program import Program
from ..base import Change, Skip, Technique
from ..indirect import is_place, read_by_map
from ..reads import Table
from ..settings import check_whole
from ..sharing.clusters import weighted_means
from ..tables import OnTables, Traffic

__all__ = ["PruneRows"]

_LADDER = (1, 2, 5)


@dataclass(frozen=True)
class PruneRows(OnTables):
    """Keep the rows that calibration looks up at least `least` times; all others share one default row.

        x_v  =  U[p_v]          U (K + 1, d), p (V,) int32          4 d V bytes  ->  4 d (K + 1) + 4 V

    The default is the mean of the rows that go, weighted with 1 + how often each is looked up: what an id that calibration
    never saw (the example, without any) is answered with. Rows of zeros (padding) stay zeros. Of tables that fusion stacked,
    each has a default of its own.

    A change says what share of calibration's lookups find their own row, and what share would if each were not counted
    itself, which is what other traffic of the same kind may expect. It takes a second lookup and is a setting for memory. Tables
    stay, each with its reason, that are read by more than lookups, smaller than `least_bytes`, not float32, not finite, looked up
    by a map already, or of which too few rows go to pay for the map.

    Raises `InputError` for other settings, `TechniqueError` for calibration that the model does not take. Cost: two seconds for a
    million rows of 64.

    Source: the frequency filter of feature admission; leaving each lookup out as Good, "The population frequencies of species", 1953.

    Example:
        >>> PruneRows().exact, [step.least for step in PruneRows.ladder()]
        (False, [1, 2, 5])
    """

    name: ClassVar[str] = "prune_rows"
    rule: ClassVar[str] = "prune rows"
    fitted: ClassVar[bool] = True
    cuts: ClassVar[bool] = True

    least: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "least", least=1)

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - less is lost by these, whatever was changed
        """Rows that are looked up less often stay as well, and in the end all that are looked up at all."""
        return tuple(replace(self, least=least) for least in reversed(_LADDER) if least < self.least)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """Rows that are looked up at all, twice and five times."""
        return tuple(cls(least=least) for least in _LADDER)

    def refusal(self, gm: fx.GraphModule, table: Table) -> str:
        """Rows that have no mean, and those that are shared already."""
        if any(is_place(gm, read.ids) for read in table.reads):
            return "its rows are looked up by a map already"
        return "" if bool(table.tensor.isfinite().all()) else "it holds NaN or infinities"

    def take(
        self, gm: fx.GraphModule, tables: Sequence[Table], traffic: Traffic
    ) -> tuple[list[Change], list[Skip]]:
        """Each table by its map, or the reason."""
        changes: list[Change] = []
        skipped: list[Skip] = []
        parts = {table.name: _parts(gm, table) for table in tables}
        for table, counts in [(table, traffic(table)) for table in tables]:
            made = _pruned(table.tensor, counts, parts[table.name], self.least)
            if made.nbytes >= table.tensor.nbytes:
                reason = (
                    f"{made.gone} of its {len(counts)} rows are looked up fewer than {self.least} times: without them it "
                    f"takes {made.nbytes} bytes by a map, as it is {table.tensor.nbytes}"
                )
                skipped.append(Skip(self.rule, table.name, reason))
                continue
            read_by_map(gm, table, add_constant(gm, f"{table.name}_rows", made.rows), made.places)
            changes.append(Change(self.rule, table.name, made.said(table.tensor), made.nbytes))
        return changes, skipped


@dataclass(frozen=True)
class _Pruned:
    """Rows (K, d) that are left and the place of each id (V,), how many ids lost theirs, and what became of the lookups.

    `own` of `seen` lookups find their own row, and `again` of them where each is not counted itself.
    """

    rows: Tensor
    places: Tensor
    gone: int
    own: int
    again: int
    seen: int

    @property
    def nbytes(self) -> int:
        """Bytes of rows and map."""
        return self.rows.nbytes + self.places.nbytes

    def said(self, table: Tensor) -> str:
        """What a change says of it."""
        seen = max(self.seen, 1)
        return (
            f"{len(table) - self.gone} of {len(table)} rows are kept: {table.nbytes} -> {self.nbytes} bytes, "
            f"{self.own / seen:.2%} of {self.seen} lookups in calibration find their own row, "
            f"{self.again / seen:.2%} where each is not counted itself"
        )


def _pruned(table: Tensor, counts: Tensor, parts: Tensor, least: int) -> _Pruned:
    """A finite table without the rows that are looked up fewer than `least` times; `parts` (V,) says which share a default."""
    size = len(table)
    zeros = (table == 0).all(1)
    kept = (counts >= least) | zeros
    # A row is named by its id, those of zeros by one of theirs, and what stands for a part behind all ids.
    names = torch.where(kept, torch.arange(size), size + parts)
    names[zeros] = zeros.int().argmax()
    found, places = torch.unique(names, return_inverse=True)
    rows = weighted_means(table, 1.0 + counts.double(), places, len(found))
    again = (counts > least) | zeros
    own = [int(counts[which].sum()) for which in (kept, again)]
    return _Pruned(rows, places.int(), int((~kept).sum()), own[0], own[1], int(counts.sum()))


def _parts(gm: fx.GraphModule, table: Table) -> Tensor:
    """Which of the tables that were stacked in this one each row belongs to, (V,)."""
    moved = gm.meta.get("moved", {}).values()
    ends = {end for name, row, rows, *_ in moved if name == table.name for end in (row, row + rows)}
    bounds = torch.tensor(sorted(ends - {0}), dtype=torch.int64)
    return torch.searchsorted(bounds, torch.arange(len(table.tensor)), right=True)
