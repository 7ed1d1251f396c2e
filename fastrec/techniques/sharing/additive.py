"""Fits of sums to a table: which rows are added, and what they hold, by weighted least squares.

Learned codes: codebooks are found one after the other by k-means of what those before leave, then in turn: each takes
the weighted means of what the others leave of its rows, and rows their nearest code. Either step lowers the error.

Arithmetic codes: with q = v // r and s = v % r the error is quadratic in A and B together, and its normal equations

    (sum_s W_qs) A_q + sum_s W_qs B_s = sum_s W_qs x_qs         for each q
    sum_q W_qs A_q + (sum_q W_qs) B_s = sum_q W_qs x_qs         for each s

are solved at once: A by B from the first, and B from r equations. Quotients and remainders of rows of zeros hold zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .code_lookups import Coded
from .codebooks import added_up, centres, evened, means, nearest, sample
from .coded_tables import Plan

__all__ = ["fit_codes", "fit_quotients"]

_SWEEPS = 6
_TAKEN = 2
_ROWS = 1 << 15
_RIDGE = 1e-9


def fit_codes(plan: Plan, tried: Sequence[tuple[int, int]]) -> Coded:
    """The table as sums of m rows, each of a codebook of k, for the (m, k) of those to be tried that loses least."""
    table = plan.table.tensor
    x, mass = sample([table], [plan.coarse])
    size = evened(x, mass)
    x /= size
    found = [_codebooks(x, mass, parts, count) for parts, count in tried]
    _, books = min(found, key=lambda one: one[0])
    count = books.shape[1]
    codes = torch.cat([_codes(table[part] / size, books) for part in _parts(table)])
    if plan.hot:
        codes[plan.hot.rows] = 0
    book = (books * size).view(-1, table.shape[1])
    return Coded(book, (len(table), table.shape[1]), True, codes.to(torch.uint8), count)


def _codebooks(x: Tensor, mass: Tensor, parts: int, count: int) -> tuple[float, Tensor]:
    """Codebooks (m, k, d) for rows x (n, d), and the squared error that they leave."""
    books = torch.zeros(parts, count, x.shape[1])
    codes = []
    left = x.clone()
    for k in range(parts):
        found = centres(left, mass, count, k)
        books[k, : len(found)] = found
        codes.append(nearest(left, books[k]))
        left -= books[k, codes[k]]
    for _ in range(_SWEEPS):
        for k in range(parts):
            left += books[k, codes[k]]
            books[k] = means(left, mass, codes[k], books[k])
            codes[k] = nearest(left, books[k])
            left -= books[k, codes[k]]
    return float((left.square().sum(1) * mass).sum()), books


def _codes(x: Tensor, books: Tensor) -> Tensor:
    """Codes (n, m) of rows: the nearest of what is left, then in turn those that bring the sum nearer."""
    left = x.clone()
    codes = torch.zeros(len(x), len(books), dtype=torch.int64)
    for sweep in range(1 + _TAKEN):
        for k, book in enumerate(books):
            if sweep:
                left += book[codes[:, k]]
            codes[:, k] = nearest(left, book)
            left -= book[codes[:, k]]
    return codes.masked_fill_((x == 0).all(1, keepdim=True), 0)


def _parts(table: Tensor) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, len(table), _ROWS)]


def fit_quotients(table: Tensor, weights: Tensor, divisor: int) -> Coded:
    """The table as sums of rows by quotient and by remainder. Cost: two passes over it, and `divisor` equations."""
    size, width = table.shape
    quotients = -(-size // divisor)
    mass = torch.zeros(quotients * divisor, dtype=torch.float64)
    mass[:size] = weights
    mass = mass.view(quotients, divisor)
    by_quotient = torch.zeros(quotients, width, dtype=torch.float64)
    by_remainder = torch.zeros(divisor, width, dtype=torch.float64)
    ids = torch.arange(size)
    for part in _parts(table):
        weighed = table[part].double() * weights[part, None]
        by_quotient += added_up(weighed, ids[part] // divisor, quotients)
        by_remainder += added_up(weighed, ids[part] % divisor, divisor)
    zeros = ids[(table == 0).all(1)]
    inverse = torch.where(mass.sum(1) > 0, 1 / mass.sum(1), 0.0)
    inverse[zeros // divisor] = 0
    free = mass.sum(0) > 0
    free[zeros % divisor] = False
    spread = inverse[:, None] * mass
    normal = torch.diag(mass.sum(0)) - mass.t() @ spread
    right = by_remainder - spread.t() @ by_quotient
    # A constant that moves from A to B changes no sum: the least of them is taken.
    normal = normal[free][:, free]
    normal.diagonal().add_(_RIDGE * float(mass.sum(0).max()))
    remainders = torch.zeros(divisor, width, dtype=torch.float64)
    remainders[free] = torch.linalg.solve(normal, right[free])
    found = inverse[:, None] * (by_quotient - mass @ remainders)
    book = torch.cat([found, remainders]).float()
    return Coded(book, (size, width), True, divisor=divisor, quotients=quotients)
