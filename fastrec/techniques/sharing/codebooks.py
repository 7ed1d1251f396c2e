"""Codebooks: few rows that stand for many, by weighted k-means.

    min over C, c:   sum_v  w_v |x_v - C[c_v]|^2        x (V, d), w (V,), C (k, d), c (V,) in 0..k-1

    w_v  =  n_v / n + 1 / V                             n_v lookups of row v in calibration, n of all rows

Half of the weight goes to the rows that calibration looks up, as often as it does, and half to all rows alike: a row
that it never saw counts, and the balance does not move with the length of the calibration. C[0] is zero and stays so:
rows of zeros (padding) are read as exactly zero.

Centres are found on at most 32,768 rows, drawn with chances like their weights (systematically: a row of twice the
weight comes twice, none by luck), then every row takes its nearest. Seeds are drawn as in k-means++, by a generator of
its own, so the result is the same each time. Cost: 16 k-means of 256 centres, on one core, take 12 s for a million
rows of 64.

Source: Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", 2007.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["added_up", "centres", "evened", "means", "nearest", "sample", "weights_of"]

_SAMPLE = 1 << 15
_SWEEPS = 12
_SETTLED = 1e-4
# Distances worked out at once: they stay in the cache.
_ENTRIES = 1 << 18
_APART = 4.0


def weights_of(counts: Tensor) -> Tensor:
    """What each row's error weighs (V,) float64, from how often it is looked up: they add up to 2 n, or to V where n is 0."""
    total = counts.sum().double()
    return counts + total / len(counts) if total else torch.ones(len(counts), dtype=torch.float64)


def sample(tables: Sequence[Tensor], weights: Sequence[Tensor], most: int = _SAMPLE) -> tuple[Tensor, Tensor]:
    """Rows of these tables (n, d), n <= `most`, and what each stands for (n,): all rows that weigh something, where there are no more."""
    kept = [(weight > 0).nonzero().flatten() for weight in weights]
    if sum(map(len, kept)) <= most:
        rows = [table[one] for table, one in zip(tables, kept, strict=True)]
        mass = [weight[one] for weight, one in zip(weights, kept, strict=True)]
        return torch.cat(rows), torch.cat(mass).float()
    ends = torch.cat(list(weights)).cumsum(0)
    places = (torch.arange(most, dtype=torch.float64) + 0.5) / most * ends[-1]
    drawn, times = torch.unique(torch.searchsorted(ends, places, right=True), return_counts=True)
    rows, start = [], 0
    for table in tables:
        mine = drawn[(drawn >= start) & (drawn < start + len(table))] - start
        rows.append(table[mine])
        start += len(table)
    return torch.cat(rows), times.float()


def evened(x: Tensor, weights: Tensor) -> Tensor:
    """Powers of two (d,) that columns are divided by before distances are taken: to one size, where they are of very different size.

    Distances would not see an embedding beside a first-order weight ten times as large.
    """
    sizes = (x.double().square() * weights[:, None]).mean(0).div(weights.double().mean()).sqrt()
    held = sizes[sizes > 0]
    if not len(held):
        return torch.ones(x.shape[1])
    if float(held.max()) < _APART * float(held.min()):
        sizes = held.square().mean().sqrt().expand(x.shape[1])
    return torch.where(sizes > 0, sizes, held.min()).log2().round().exp2().float()


def centres(x: Tensor, weights: Tensor, count: int, seed: int) -> Tensor:
    """The codebook (count, d) of rows x (n, d): zeros, and `count - 1` centres of what is not nearest to them."""
    rng = torch.Generator().manual_seed(seed)
    found = torch.zeros(count, x.shape[1])
    left = x.square().sum(1)
    if not len(x):
        return found[:1]
    for place in range(1, count):
        ends = (weights * left).double().cumsum(0)
        if not float(ends[-1]) > 0:
            return found[:place]  # every row is a centre
        drawn = torch.rand(1, generator=rng, dtype=torch.float64) * ends[-1]
        found[place] = x[torch.searchsorted(ends, drawn, right=True).clamp_(max=len(x) - 1)]
        left = torch.minimum(left, (x - found[place]).square_().sum(1))
    before = torch.inf
    for _ in range(_SWEEPS):
        codes = nearest(x, found)
        off = (x - found[codes]).square_().sum(1).mul_(weights)
        now = float(off.sum())
        if not now < before * (1 - _SETTLED):
            break
        before = now
        found = means(x, weights, codes, found)
        _fill(found, x, codes, off)
    return found


def means(x: Tensor, weights: Tensor, codes: Tensor, old: Tensor) -> Tensor:
    """What stands best for the rows of each code (k, d): their weighted mean; 0 for code 0, the old row for codes of none."""
    sums = added_up(x * weights[:, None], codes, len(old))
    mass = added_up(weights[:, None], codes, len(old))
    made = torch.where(mass > 0, sums / mass.clamp_min(1e-300), old.double()).float()
    made[0] = 0
    return made


def added_up(x: Tensor, codes: Tensor, count: int) -> Tensor:
    """The sum (count, d) float64 of the rows of each code, in their order."""
    # `index_add_` makes a call for each row.
    return torch.stack(
        [torch.bincount(codes, weights=column.double(), minlength=count) for column in x.unbind(1)], 1
    )


def _fill(found: Tensor, x: Tensor, codes: Tensor, off: Tensor) -> None:
    """Centres that no row took go to the rows that are off most."""
    empty = (torch.bincount(codes, minlength=len(found))[1:] == 0).nonzero().flatten() + 1
    worst = off.topk(min(len(empty), len(off))).indices
    found[empty[: len(worst)]] = x[worst]


def nearest(x: Tensor, found: Tensor) -> Tensor:
    """The code (n,) int64 of the centre nearest to each row; of rows of zeros 0."""
    lengths = found.square().sum(1)
    step = max(1, _ENTRIES // len(found))
    codes = torch.empty(len(x), dtype=torch.int64)
    for start in range(0, len(x), step):
        distances = torch.addmm(lengths, x[start : start + step], found.t(), alpha=-2)
        torch.argmin(distances, 1, out=codes[start : start + step])
    return codes.masked_fill_((x == 0).all(1), 0)
