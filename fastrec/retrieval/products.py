"""Scores by products in float32: of whole rows, or of what counts most in them.

    x . q  =  sum_i (R x)_i (R q)_i          R orthogonal
          <=  sum_{i < p} (R x)_i (R q)_i  +  |rest of R x| |rest of R q|

With the right singular vectors of the matrix as R, the first p dimensions hold as much of the rows as p dimensions can.
The rest's length is one more column, so the bound is one product of width p + 1.

Source: Y. Bachrach et al., "Speeding up the Xbox recommender system using a Euclidean transformation for inner-product
spaces", RecSys 2014; H. Li et al., "FEXIPRO: fast and exact inner product retrieval in recommender systems", SIGMOD 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .stored import EPS, Stored
from .ways import float_limits

__all__ = ["Prefix", "Products"]


class Products:
    """Whole rows: the estimate is the score up to rounding."""

    name, exact = "products", True

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.matrix = torch.empty(stored.blocks * stored.size, stored.width)
        for number in range(stored.blocks):
            self.matrix[number * stored.size : (number + 1) * stored.size] = stored.block(number)
        self.nbytes = self.matrix.nbytes

    def ask(self, queries: Tensor) -> _AskedProducts:
        """The queries as they are."""
        return _AskedProducts(self.stored, self.matrix, queries, queries.double().norm(dim=1))


class Prefix:
    """The first `kept` dimensions after the rotation, and the length of the rest."""

    exact = True

    def __init__(self, stored: Stored, kept: int) -> None:
        self.stored, self.kept = stored, kept
        self.name = f"prefix {kept}"
        gram = sum(
            (part.double().T @ part.double() for part in torch.split(stored.items, 1 << 16)),
            torch.zeros(stored.width, stored.width, dtype=torch.float64),
        )
        self.rotation = torch.linalg.eigh(gram).eigenvectors.flip(1)
        self.matrix = torch.empty(stored.blocks * stored.size, kept + 1)
        for number in range(stored.blocks):
            self.matrix[number * stored.size : (number + 1) * stored.size] = self._cut(
                stored.block(number) @ self.rotation
            )
        self.nbytes = self.matrix.nbytes + self.rotation.nbytes

    def ask(self, queries: Tensor) -> _AskedProducts:
        """The queries turned and cut likewise."""
        wide = queries.double()
        return _AskedProducts(
            self.stored, self.matrix, self._cut(wide @ self.rotation).float(), wide.norm(dim=1)
        )

    def _cut(self, turned: Tensor) -> Tensor:
        return torch.cat([turned[:, : self.kept], turned[:, self.kept :].norm(dim=1, keepdim=True)], 1)


class _AskedProducts:
    def __init__(self, stored: Stored, matrix: Tensor, queries: Tensor, lengths: Tensor) -> None:
        self.stored, self.matrix, self.queries, self.lengths = stored, matrix, queries, lengths
        self.buffer = torch.empty(0)
        # Of a sum of n products in float32, and of both factors' rounding.
        self.slack = 2 * (matrix.shape[1] + 8) * EPS

    def estimates(self, first: int, last: int) -> Tensor:
        rows = self.matrix[first * self.stored.size : last * self.stored.size]
        if len(self.buffer) < len(rows):
            self.buffer = torch.empty(len(rows), len(self.queries))
        return torch.mm(rows, self.queries.T, out=self.buffer[: len(rows)])

    def limits(self, first: int, last: int, least: Tensor) -> Tensor:
        return float_limits(self.stored, first, last, least, self.lengths, self.slack)

    def scores(self, blocks: Tensor, asked: Tensor, estimates: Tensor) -> Tensor:  # noqa: ARG002 - other ways need them
        return estimates

    def take(self, which: Tensor) -> _AskedProducts:
        return _AskedProducts(self.stored, self.matrix, self.queries[which], self.lengths[which])
