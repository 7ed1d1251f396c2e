"""A table in fewer rows: those that are looked up most as they are, centroids for the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .clusters import cluster
from .equal import distinct, row_labels
from .parts import parts

__all__ = ["Fewer", "fewer_rows"]


@dataclass(frozen=True)
class Fewer:
    """Rows (K, d) that stand for those of a table, which stands for each (V,), and what became of the lookups.

    `taken` of the `seen` ones give the row as it was; `error` is sqrt(sum w |x' - x|^2 / sum w |x|^2), w = 1 + lookups.
    """

    rows: Tensor
    places: Tensor
    different: int
    taken: int
    seen: int
    error: float

    @property
    def nbytes(self) -> int:
        """Bytes of rows and map."""
        return self.rows.nbytes + 4 * len(self.places)


def fewer_rows(table: Tensor, counts: Tensor, keep: float) -> Fewer | None:
    """This share of a finite table's different rows; None where that takes no less than the table, or is all of them."""
    (labels,) = row_labels([table])
    first = distinct(labels)
    count = max(1, int(keep * len(first)))
    if count >= len(first) or 4 * len(labels) + 4 * table.shape[1] * count >= table.nbytes:
        return None
    rows = table[first]
    looked_up = torch.zeros(len(first), dtype=torch.int64).index_add_(0, labels, counts)
    exact = _exact(rows, looked_up, count)
    left = (~exact).nonzero().squeeze(1)
    # One at least for those that are not kept, be there ever so many rows of zeros.
    room = max(1, count - int(exact.sum()))
    centroids, own = cluster(rows[left], 1.0 + looked_up[left].double(), room)
    places = torch.empty_like(first)
    places[exact] = torch.arange(int(exact.sum()))
    places[left] = int(exact.sum()) + own
    kept = torch.cat([rows[exact], centroids])
    made = Fewer(kept, places[labels], len(first), *_losses(rows, kept, places, looked_up))
    return made if made.nbytes < table.nbytes else None


def _losses(rows: Tensor, kept: Tensor, places: Tensor, counts: Tensor) -> tuple[int, int, float]:
    """How many of how many lookups give the row as it was, and how far rows are off."""
    taken, off, size = 0, 0.0, 0.0
    for part in parts(*rows.shape):
        right, found, seen = rows[part], kept[places[part]], counts[part]
        taken += int(seen[(found.view(torch.int32) == right.view(torch.int32)).all(1)].sum())
        weights = 1.0 + seen.double()
        off += float(weights @ (found.double() - right.double()).square_().sum(1))
        size += float(weights @ right.double().square_().sum(1))
    return taken, int(counts.sum()), (off / size) ** 0.5 if size else 0.0


def _exact(rows: Tensor, counts: Tensor, count: int) -> Tensor:
    """Which rows stay: zeros, and up to half of `count` of those that are looked up, the ones that are most."""
    most = min(count // 2, int(counts.count_nonzero()))
    exact = (rows == 0).all(1)
    exact[counts.argsort(descending=True, stable=True)[:most]] = True
    return exact
