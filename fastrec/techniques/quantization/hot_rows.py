"""Hot rows: the rows of a table that traffic asks for most stay exact, beside coarse ones.

    x_v  =  C[v] + E[p_v]          C (V, .) coarse rows, E (1 + H, d) float32, p (V,) int32 in 0..H

The coarse row of a hot v holds zeros and reads as 0, and E[0] is 0, where every other v points to: so either term is 0
and nothing is rounded. Sums of rows are sums of both terms, and stay bags. Where a row is exact is looked up by its id
like the row itself, so both lookups run in front of any session, and no row depends on the others of its batch.

It costs 4 bytes for each row of the table and 4 d for each hot one. One lookup of rows of 16 from 2.6 million, of which
26,000 are hot and take 9 of 10 ids, one thread, microseconds: 18 at 26 ids (all int8: 11, float32: 7), 252 at 2,600 (154,
219), 1,283 at 26,000 (467, 718). Picking out the hot ids of a batch first took 27, 319 and 1,848.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...graph import add_constant
from ..reads import Table

__all__ = ["Hot", "hold_exact", "hottest"]


@dataclass(frozen=True)
class Hot:
    """The hot rows of a table: their ids (H,), ascending, and how many of the lookups that were seen they take."""

    rows: Tensor
    taken: int
    seen: int

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    def __str__(self) -> str:
        return f"{len(self.rows)} rows exact, which take {self.taken} of {self.seen} lookups in calibration"

    def nbytes(self, size: int, width: int) -> int:
        """What they take beside a table of so many rows and columns."""
        return 4 * size + 4 * width * (1 + len(self.rows))


def hottest(counts: Tensor, share: float) -> Hot:
    """The share of a table's rows that are looked up most, of those that are looked up; of equals the first."""
    most = min(max(1, int(share * len(counts))), int(counts.count_nonzero()))
    rows = counts.argsort(descending=True, stable=True)[:most].sort().values
    return Hot(rows, int(counts[rows].sum()), int(counts.sum()))


def hold_exact(gm: fx.GraphModule, table: Table, rows: Tensor) -> tuple[fx.Node, fx.Node]:
    """The constants p and E of a table with these hot rows."""
    places = torch.zeros(len(table.tensor), dtype=torch.int32)
    places[rows] = torch.arange(1, len(rows) + 1, dtype=torch.int32)
    nothing = table.tensor.new_zeros(1, table.tensor.shape[1])
    exact = add_constant(gm, f"{table.name}_exact", torch.cat([nothing, table.tensor[rows]]))
    # They are not to be quantised in their turn.
    gm.meta["hot"] = (*gm.meta.get("hot", ()), str(exact.target))
    return add_constant(gm, f"{table.name}_places", places), exact
