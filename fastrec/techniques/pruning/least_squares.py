"""What stands in for what was cut: the linear map that is nearest on the calibration.

    min over V, c   |Y - X V^T - c|^2 + ridge |V - V0|^2            X (n, I), Y (n, O), V (O, I), c (O,)

V0 is what there was before (zeros without any), so that columns on which the rows say little stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Rows", "affine", "refitted"]

_RIDGE = 1e-3
_RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
_HELD = 4
# Of the squares of a column, what rounding leaves of one that never varies.
_NOTHING = 1e-20


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
    start = y.new_zeros(y.shape[1], x.shape[1]) if before is None else before
    rows = Rows(x, y)
    return rows.around(rows.all.solved(start.double(), ridge))


def refitted(x: Tensor, y: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The weight (O, I) and bias (O,) of a map whose input is now x (n, I), towards what it gave, y (n, O): see `Rows.refitted`."""
    return Rows(x, y).refitted(before)


class Rows:
    """Rows x (n, I) and y (n, O), of which products are taken once for all fits to some of the columns.

    Cost: a product x^T x, and x and y in float64.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        x, y = x.double(), y.double()
        self._x_mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
        self._y_mean = y.mean(0) if len(y) else y.new_zeros(y.shape[1])
        least = _NOTHING * float(x.square().mean()) if x.numel() else 0.0
        x, y = x - self._x_mean, y - self._y_mean
        held = torch.arange(len(x)) % _HELD == _HELD - 1
        self._x, self._y = x[held], y[held]
        self.all = _Sums.of(x, y, least)
        self._fitted = _Sums.of(x[~held], y[~held], least) if bool(held.any()) else self.all

    def around(self, found: tuple[Tensor, Tensor], columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A weight of these columns, and a bias of centred rows as one of rows as they are."""
        weight, bias = found
        mean = self._x_mean if columns is None else self._x_mean[columns]
        return weight, bias + self._y_mean - weight @ mean

    def refitted(self, before: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The weight (O, I') and bias (O,) of a map that is given these columns of x alone, towards y.

        `before` are its weights of these columns. Of several ridges, and of a new bias alone, that which is nearest on every
        fourth row, which is not fitted, is then fitted to all. Cost: six solutions of I' equations.
        """
        start = before.double()
        fitted, every = (one if columns is None else one.only(columns) for one in (self._fitted, self.all))
        x = self._x if columns is None else self._x[:, columns]

        def off(weight: Tensor, bias: Tensor) -> float:
            return float((x @ weight.t() + bias - self._y).square().sum())

        tried = {ridge: off(*fitted.solved(start, ridge)) for ridge in _RIDGES} if len(x) else {}
        best = min(tried, key=lambda ridge: tried[ridge], default=0.0)
        if not tried or not tried[best] < off(*fitted.shifted(start)):
            return self.around(every.shifted(start), columns)
        return self.around(every.solved(start, best), columns)


@dataclass(frozen=True)
class _Sums:
    """Means of n rows x (I,) and y (O,), and sums of the products of what is around them: (I, I), (I, O)."""

    x: Tensor
    y: Tensor
    squares: Tensor
    across: Tensor
    least: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, least: float) -> _Sums:
        """The sums of rows; columns of mean squares up to `least` do not vary."""
        x_mean = x.mean(0) if len(x) else x.new_zeros(x.shape[1])
        y_mean = y.mean(0) if len(y) else y.new_zeros(y.shape[1])
        x, y = x - x_mean, y - y_mean
        return cls(x_mean, y_mean, x.t() @ x, x.t() @ y, least * len(x))

    def only(self, columns: Tensor) -> _Sums:
        """Those of some columns of x."""
        squares = self.squares[columns][:, columns]
        return _Sums(self.x[columns], self.y, squares, self.across[columns], self.least)

    def shifted(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weight with the bias that gives the mean of y."""
        return weight, self.y - weight @ self.x

    def solved(self, before: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """The nearest weight and bias."""
        size = float(self.squares.diagonal().mean()) if self.squares.numel() else 0.0
        if size <= self.least:
            return self.shifted(before)
        squares = self.squares.clone()
        squares.diagonal().add_(ridge * size)
        more = torch.linalg.solve(squares, self.across - self.squares @ before.t())
        return self.shifted(before + more.t())
