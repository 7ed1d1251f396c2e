"""Item and user factors trained on real purchases, and as many items as a benchmark asks for."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["tiled", "trained"]

DATA = Path(__file__).parent.parent / "examples" / "data" / "online_retail.csv.gz"
WEIGHT, SHRINK, SWEEPS = 10.0, 1.0, 8
NOISE = 0.1


def trained(width: int = 64) -> tuple[Tensor, Tensor]:
    """Users (4339, d) and items (3665, d) by alternating least squares for implicit feedback (Hu, Koren, Volinsky 2008).

    A purchase's confidence is 1 + 10 log(1 + lines). Some 10 s.
    """
    with gzip.open(DATA, "rt") as file:
        users, items, lines = np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.int64).T
    extra = torch.zeros(users.max() + 1, items.max() + 1)
    extra[users, items] = WEIGHT * torch.from_numpy(lines).float().log1p()
    item = 0.1 * torch.randn(extra.shape[1], width, generator=torch.Generator().manual_seed(0))
    for _ in range(SWEEPS):
        user = _solve(item, extra)
        item = _solve(user, extra.T.contiguous())
    return user, item


def tiled(items: Tensor, count: int) -> Tensor:
    """`count` items: these again and again, each time with fresh noise of a tenth of their length."""
    many = items.repeat(-(-count // len(items)), 1)[:count]
    noise = torch.randn(many.shape, generator=torch.Generator().manual_seed(1))
    return many + NOISE / many.shape[1] ** 0.5 * many.norm(dim=1, keepdim=True) * noise


def _solve(others: Tensor, extra: Tensor) -> Tensor:
    gram = others.T @ others + SHRINK * torch.eye(others.shape[1])
    rows = []
    for row in extra:
        there = row.nonzero()[:, 0]
        some, weight = others[there], row[there]
        rows.append(
            torch.linalg.solve(
                gram + (some * weight[:, None]).T @ some, ((1 + weight)[:, None] * some).sum(0)
            )
        )
    return torch.stack(rows)
