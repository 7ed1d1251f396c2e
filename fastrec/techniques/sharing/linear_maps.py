"""One table as a linear map of another, by least squares that a few odd rows do not spoil.

    min_M sum_v w_v |b_v - a_v M|          a (V, d_a), b (V, d_b), M (d_a, d_b), w (V,) > 0

A sum of lengths, not of their squares, so that rows which have nothing to do with the map barely count: it is found by squares
with weights w_v / |b_v - a_v M|, again and again. Products are summed in float64, with a step of refinement, so that a map that
is exact is found to the last bits of float32.

Source: iteratively reweighted least squares, as in Holland and Welsch, 1977.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .parts import parts

__all__ = ["linear_map", "residuals"]

_SAMPLE, _STEPS = 1 << 14, 12
_LEAST = 1e-12


def linear_map(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """M (d_a, d_b) float32 for float32 tables of V rows. Cost: V d_a (d_a + 2 d_b) multiply-adds, some of them 12 times."""
    step = -(-len(a) // _SAMPLE)
    some = a[::step], b[::step], weights[::step]
    found = _squares(*some)
    for _ in range(_STEPS):
        found = _squares(*some[:2], _reweighted(*some, found))
    if step > 1:
        found = _squares(a, b, _reweighted(a, b, weights, found))
    return found.float()


def residuals(a: Tensor, b: Tensor, found: Tensor) -> Iterator[Tensor]:
    """b - a M in float64, some rows after another."""
    wide = found.double()
    for part in parts(len(a), max(a.shape[1], b.shape[1])):
        yield b[part].double() - a[part].double() @ wide


def _reweighted(a: Tensor, b: Tensor, weights: Tensor, found: Tensor) -> Tensor:
    off = torch.cat([rest.norm(dim=1) for rest in residuals(a, b, found)])
    # Below half of what is usual, rows count alike; where half of the rows are exact, those count alone.
    least = max(0.5 * float(off.median()), _LEAST * float(off.max()))
    return weights / off.clamp_min(least) if least else weights


def _squares(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """The map with the least weighted squares."""
    width = a.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64)
    right = torch.zeros(width, b.shape[1], dtype=torch.float64)
    for part in parts(len(a), max(width, b.shape[1])):
        mine = a[part].double()
        turned = (mine * weights[part, None]).t()
        gram += turned @ mine
        right += turned @ b[part].double()
    inverse: Tensor = torch.linalg.pinv(gram, hermitian=True)
    found = inverse @ right
    return found + inverse @ (right - gram @ found)
