"""Few rows for many: weighted k-means.

    min sum_v w_v |x_v - c_{p_v}|^2          x (n, d), w (n,) > 0, c (k, d), p (n,)

Each step assigns rows to their nearest centroid, and makes each centroid the weighted mean of its rows; one without rows
starts again at a row that is far off. A table of a million rows and a hundred thousand centroids would take 10^13
multiply-adds a step. So rows are first divided among a few dozen coarse centroids, those again, until a part and its share of
the centroids are small; a part's share is its share of the weight. Rows that begin as centroids are drawn without
replacement, by weight. The same rows give the same centroids.

Source: Lloyd, "Least Squares Quantization in PCM", 1982; drawing by weight as in Efraimidis and Spirakis, 2006.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .parts import parts

__all__ = ["cluster", "weighted_means"]

_STEPS, _COARSE_STEPS = 10, 4
# Rows times centroids up to which a part is clustered whole.
_SMALL = 1 << 21
_BRANCHES, _PART, _SAMPLE = 64, 1 << 12, 1 << 14
_DISTANCES = 1 << 22
_APART = 4.0


def cluster(rows: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` rows (k, d) for these float32 rows (n, d) of these weights (n,), and which stands for each (n,).

    A row that stands for itself alone is the row, bit by bit. Columns of which one is more than four times as large as another
    count as if they were of one size. Cost: 40 s for 900,000 rows of 64 and 125,000 centroids.
    """
    if count >= len(rows):
        return rows, torch.arange(len(rows))
    scaled = _evened(rows, weights)
    generator = torch.Generator().manual_seed(0)
    places = torch.empty(len(rows), dtype=torch.int64)
    used = 0
    pending = [(torch.arange(len(rows)), count)]
    while pending:
        part, share = pending.pop()
        if share == 1 or len(part) * share <= _SMALL:
            own = _lloyd(scaled[part], weights[part], share, _STEPS, generator)[1]
            _, own = torch.unique(own, return_inverse=True)
            places[part] = used + own
            used += int(own.max()) + 1
        else:
            pending += _divide(scaled, weights, part, share, generator)
    return weighted_means(rows, weights, places, used), places


def _evened(rows: Tensor, weights: Tensor) -> Tensor:
    """The rows with columns of one size, where they are far from it."""
    sums = torch.zeros(rows.shape[1], dtype=torch.float64)
    for part in parts(*rows.shape):
        sums += weights[part] @ rows[part].double().square_()
    sizes = sums.div_(weights.sum()).sqrt_()
    held = sizes[sizes > 0]
    if not len(held) or float(held.max()) <= _APART * float(held.min()):
        return rows
    return rows / torch.where(sizes > 0, sizes, 1.0).float()


def _divide(
    rows: Tensor, weights: Tensor, part: Tensor, share: int, generator: torch.Generator
) -> list[tuple[Tensor, int]]:
    """A part of the rows in smaller ones, each with its share of the centroids."""
    branches = min(_BRANCHES, share, -(-len(part) // _PART) + 1)
    some = part[:: max(1, len(part) // _SAMPLE)]
    centres, _ = _lloyd(rows[some], weights[some], branches, _COARSE_STEPS, generator)
    nearest = _nearest(rows[part], centres)[0]
    parts = [part[nearest == k] for k in range(branches)]
    parts = [one for one in parts if len(one)]
    if len(parts) < 2:  # all are nearest to one
        parts = list(part.tensor_split(branches))
    mass = [float(weights[one].sum()) for one in parts]
    return list(zip(parts, _shares(share, mass, [len(one) for one in parts]), strict=True))


def _shares(count: int, mass: list[float], most: list[int]) -> list[int]:
    """`count` in parts by mass, each from 1 to its most."""
    total = sum(mass)
    wanted = [count * one / total for one in mass]
    shares = [min(max(1, int(one)), high) for one, high in zip(wanted, most, strict=True)]
    while (left := count - sum(shares)) != 0:
        step = 1 if left > 0 else -1
        able = [k for k, high in enumerate(most) if (shares[k] < high if left > 0 else shares[k] > 1)]
        able.sort(key=lambda k: step * (shares[k] - wanted[k]))
        # Those that lack most, or have most too many; several rounds where some are full.
        for k in able[: abs(left)]:
            shares[k] += step
    return shares


def _lloyd(
    rows: Tensor, weights: Tensor, count: int, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Centroids (count, d), and the nearest of each row (n,)."""
    drawn = torch.rand(len(rows), generator=generator, dtype=torch.float64).log() / weights
    centres = rows[drawn.argsort(descending=True, stable=True)[:count].sort().values]
    count = len(centres)
    nearest, apart = _nearest(rows, centres)
    for _ in range(steps):
        mass = torch.zeros(count, dtype=torch.float64).index_add_(0, nearest, weights)
        empty = (mass == 0).nonzero().squeeze(1)
        if len(empty):
            far = (apart * weights).argsort(descending=True, stable=True)[: len(empty)]
            nearest[far] = empty
        centres = weighted_means(rows, weights, nearest, count)
        before = nearest
        nearest, apart = _nearest(rows, centres)
        if torch.equal(before, nearest):
            break
    return centres, nearest


def _nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each row, and its squared distance."""
    lengths = centres.square().sum(1)
    turned = centres.t().contiguous()
    found, apart = [], []
    for part in parts(len(rows), len(centres), _DISTANCES):
        least = torch.addmm(lengths, rows[part], turned, alpha=-2).min(1)
        found.append(least.indices)
        apart.append((least.values + rows[part].square().sum(1)).clamp_min_(0))
    return torch.cat(found), torch.cat(apart)


def weighted_means(rows: Tensor, weights: Tensor, places: Tensor, count: int) -> Tensor:
    """The weighted mean (count, d) of the rows at each place; of one row the row itself; of none zeros."""
    sums = torch.zeros(count, rows.shape[1], dtype=torch.float64)
    mass = torch.zeros(count, dtype=torch.float64).index_add_(0, places, weights)
    for part in parts(*rows.shape):
        sums.index_add_(0, places[part], rows[part].double() * weights[part, None])
    means = (sums / torch.where(mass > 0, mass, 1.0)[:, None]).float()
    alone = (torch.bincount(places, minlength=count) == 1)[places]
    means[places[alone]] = rows[alone]
    return means
