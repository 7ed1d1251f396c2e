"""What stands in for what was cut: the linear map that is nearest on the calibration.

    min over V, c   |Y - X V^T - c|^2 + ridge |V - V0|^2            X (n, I), Y (n, O), V (O, I), c (O,)

V0 is what there was before (zeros without any), so that columns on which the rows say little stay as they were.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["affine", "refitted", "shifted"]

_RIDGE = 1e-3
_RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
_HELD = 4


def affine(
    x: Tensor, y: Tensor, before: Tensor | None = None, *, ridge: float = _RIDGE
) -> tuple[Tensor, Tensor]:
    """The weight (O, I) and bias (O,), float64, that bring rows x (n, I) nearest to rows y (n, O).

    `ridge` is relative to the mean variance of the columns of x, so that it says the same whatever their units. Cost: a
    product x^T x and one solution of I equations.

    Example:
        >>> x = torch.eye(3)
        >>> weight, bias = affine(x, 2 * x + 1, ridge=1e-9)
        >>> bool(torch.allclose(x.double() @ weight.t() + bias, 2 * x.double() + 1, atol=1e-6))
        True
    """
    x, y = x.double(), y.double()
    start = y.new_zeros(y.shape[1], x.shape[1]) if before is None else before.double()
    x_mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
    y_mean = y.mean(0) if len(y) else y.new_zeros(y.shape[1])
    centred = x - x_mean
    left = (y - y_mean) - centred @ start.t()
    squares = centred.t() @ centred
    size = float(squares.diagonal().mean()) if squares.numel() else 0.0
    if not size:
        return start, y_mean - start @ x_mean
    squares.diagonal().add_(ridge * size)
    weight = start + torch.linalg.solve(squares, centred.t() @ left).t()
    return weight, y_mean - weight @ x_mean


def refitted(x: Tensor, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The weight (O, I) and bias (O,) of a map whose input is now x (n, I), towards what it gave, y (n, O).

    `before` are its weights of these columns. Of several ridges, and of a new bias alone, that which is nearest on every fourth
    row, which is not fitted, is then fitted to all.
    """
    held = torch.arange(len(x)) % _HELD == _HELD - 1

    def off(weight: Tensor, bias: Tensor) -> float:
        return float((x[held].double() @ weight.t() + bias - y[held].double()).square().sum())

    tried = {ridge: off(*affine(x[~held], y[~held], before, ridge=ridge)) for ridge in _RIDGES}
    start = before.double()
    alone = shifted(x, y, start)
    best = min(tried, key=lambda ridge: tried[ridge])
    if not bool(held.any()) or not tried[best] < off(start, shifted(x[~held], y[~held], start)):
        return start, alone
    return affine(x, y, before, ridge=best)


def shifted(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The bias (O,) with which rows x (n, I) by a weight (O, I) have the mean of rows y (n, O)."""
    return y.double().mean(0) - weight.double() @ x.double().mean(0)
