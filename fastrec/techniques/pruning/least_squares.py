"""What stands in for what was cut: the linear map that is nearest on the calibration.

    min over V, c   |Y - X V^T - c|^2 + ridge |V - V0|^2            X (n, I), Y (n, O), V (O, I), c (O,)

V0 is what there was before (zeros without any), so that columns on which the rows say little stay as they were.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["affine"]

_RIDGE = 1e-3


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
