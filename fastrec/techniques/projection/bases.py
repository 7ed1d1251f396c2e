"""The columns that calibration uses: second moments of the rows that it looks up, and the bases that keep most of them.

    P = A^T, x ~ m + D A^T (x - m)       A, D (d, r):  A^T D = 1

Rows of inner products are only turned, A = D = V, with V the first eigenvectors of E x x^T. Where all that reads rows
is linear maps, the basis is that of what comes of them: with W the maps' columns, C = L L^T the covariance of the rows,

    W L = U S Q^T,   D = L Q S^-1,   A^T = S Q^T L^T W^T W = U^T W         W (m + D A^T (x - m)) = W m + U U^T W (x - m)

which is the least E |W (x' - x)|^2 of any r columns: a direction that no map reads is cut first, however much the rows
spread in it. Both are turned within the columns kept, so that each has the same energy: ranges of 8 bits are for even
columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "Basis",
    "Moments",
    "balanced",
    "basis_of_maps",
    "basis_of_products",
    "rank_for",
    "row_moments",
    "table_moments",
]

_PARTS = 1 << 16
# Energies of less than this share of all, and of the largest, are rounding.
_TINY, _FLOOR = 1e-10, 1e-13


@dataclass(frozen=True)
class Moments:
    """The mean (d,) and the second moment E x x^T (d, d) of rows, in float64."""

    mean: Tensor
    second: Tensor

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.mean + other.mean, self.second + other.second)

    def __mul__(self, share: float) -> Moments:
        return Moments(self.mean * share, self.second * share)

    @property
    def covariance(self) -> Tensor:
        """The second moment about the mean (d, d)."""
        return self.second - torch.outer(self.mean, self.mean)


@dataclass(frozen=True)
class Basis:
    """A (d, r), D (d, r), the mean (d,) that is taken off before, and the share of the energy that is kept."""

    encode: Tensor
    decode: Tensor
    mean: Tensor
    kept: float


def row_moments(rows: Tensor, weights: Tensor | None = None) -> Moments:
    """Those of rows (n, d), each so many times (n,)."""
    width = rows.shape[1]
    mean, second = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    total = float(len(rows) if weights is None else weights.sum())
    for start in range(0, len(rows), _PARTS):
        part = rows[start : start + _PARTS].double()
        weighted = part if weights is None else part * weights[start : start + _PARTS, None]
        mean += weighted.sum(0)
        second += weighted.t() @ part
    return Moments(mean, second) * (1 / max(total, 1.0))


def table_moments(table: Tensor, counts: Tensor) -> Moments:
    """Those of the rows that traffic like this looks up: counts (V,) are how often calibration looked up each row (V, d).

    The next lookup is of a row not seen yet with probability n_1 / n: of n lookups n_1 are of rows seen once
    (Good, "The population frequencies of species", 1953). Those rows count for as much. Cost: one pass over the table.
    """
    seen = counts > 0
    if bool(seen.all()):
        return row_moments(table, counts.double())
    total = int(counts.sum())
    unseen = int((counts == 1).sum()) / total if total else 1.0
    of_seen = row_moments(table[seen], counts[seen].double())
    return of_seen * (1 - unseen) + row_moments(table[~seen]) * unseen if unseen else of_seen


def rank_for(energies: Tensor, energy: float, step: int) -> int:
    """How many of the energies (d,), the largest first, hold this share of all, rounded up to a multiple of `step`; at most d."""
    total = energies.sum()
    if not total > 0:
        return min(step, len(energies))
    # A share of 1 is all that is more than rounding.
    least = min(energy, 1 - _TINY)
    count = int((energies.cumsum(0) < least * total).sum()) + 1
    return min(math.ceil(count / step) * step, len(energies))


def basis_of_products(moments: Moments, energy: float, rank: int | None, step: int) -> Basis:
    """That of rows whose inner products are read: orthonormal, and nothing is taken off."""
    found, vectors = _descending(moments.second)
    kept = rank_for(found, energy, step) if rank is None else rank
    turned = vectors[:, :kept] @ balanced(found[:kept])
    return Basis(turned, turned, torch.zeros_like(moments.mean), _share(found, kept))


def basis_of_maps(
    moments: Moments, maps: Tensor, energy: float, rank: int | None, step: int, *, centred: bool
) -> Basis:
    """That of rows that linear maps of these columns W (k, d) read; `centred` where the mean may be taken off."""
    spread, vectors = _descending(moments.covariance if centred else moments.second)
    top = float(spread[0])
    # Rows off the support of the calibration are mapped as they are, as far as the rank goes.
    root = vectors * (spread.clamp(min=_FLOOR * top) if top > 0 else torch.ones_like(spread)).sqrt()
    left, sizes, right = torch.linalg.svd(maps @ root, full_matrices=False)
    energies = torch.zeros(len(spread), dtype=torch.float64)
    energies[: len(sizes)] = sizes.square()
    kept = rank_for(energies, energy, step) if rank is None else rank
    encode, decode = (
        torch.zeros(len(spread), kept, dtype=torch.float64),
        torch.zeros(len(spread), kept, dtype=torch.float64),
    )
    # No more directions than the maps read.
    read = min(kept, int((sizes > _FLOOR * sizes[0]).sum()))
    encode[:, :read] = maps.t() @ left[:, :read]
    decode[:, :read] = root @ right[:read].t() / sizes[:read]
    turn = balanced(energies[:kept])
    mean = moments.mean if centred else torch.zeros_like(moments.mean)
    return Basis(encode @ turn, decode @ turn, mean, _share(energies, kept))


def _descending(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues, the largest first, none negative, and their vectors as columns."""
    values, vectors = torch.linalg.eigh((symmetric + symmetric.t()) / 2)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _share(energies: Tensor, kept: int) -> float:
    total = float(energies.sum())
    return float(energies[:kept].sum()) / total if total else 1.0


def balanced(energies: Tensor) -> Tensor:
    """A rotation H (r, r) after which each of these uncorrelated columns has the same energy: diag(H^T diag(e) H) is even.

    By plane rotations of the column with the most and the one with the least, each of which makes one even (Bendel and
    Mickey, 1978).
    """
    size = len(energies)
    turn = torch.eye(size, dtype=energies.dtype)
    matrix = torch.diag(energies)
    mean = float(energies.mean()) if size else 0.0
    for _ in range(size - 1):
        high, low = int(matrix.diagonal().argmax()), int(matrix.diagonal().argmin())
        a, b, c = float(matrix[high, high]), float(matrix[low, low]), float(matrix[high, low])
        if a - b <= 1e-9 * abs(mean):
            break
        # The tangent of the angle that gives `high` the mean: (a - m) - 2 c t + (b - m) t^2 = 0, stably.
        p, q = a - mean, b - mean
        root = math.sqrt(max(c * c - p * q, 0.0))
        tangent = p / (c + math.copysign(root, c))
        cosine = 1 / math.sqrt(1 + tangent * tangent)
        plane = torch.eye(size, dtype=energies.dtype)
        plane[high, high] = plane[low, low] = cosine
        plane[low, high], plane[high, low] = -cosine * tangent, cosine * tangent
        matrix = plane.t() @ matrix @ plane
        turn = turn @ plane
    return turn
