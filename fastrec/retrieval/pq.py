"""Scores by product quantisation: a row is the nearest of 256 centroids in each of its parts of 8 dimensions.

    x . q  ~  sum_j  c_j[code_j(x)] . q_j

A row takes one byte per part; a query's products with all centroids are a table, of which a row's score sums one
entry per part.

Source: H. Jegou, M. Douze and C. Schmid, "Product quantization for nearest neighbor search", TPAMI 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .stored import Stored

__all__ = ["Centroids"]

_PART, _CENTROIDS, _SAMPLE, _ROUNDS, _CHUNK = 8, 256, 1 << 15, 8, 1 << 15
_SEED = 20240229


class Centroids:
    """Rows as numbers of centroids (M, d / 8), found by k-means on a sample of rows. Approximate."""

    name, exact = "pq", False

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.parts = -(-stored.width // _PART)
        generator = torch.Generator().manual_seed(_SEED)
        some = torch.randperm(stored.count, generator=generator)[:_SAMPLE]
        split = self._split(stored.items[some].double())
        self.centroids = torch.stack([_kmeans(split[:, j].float()) for j in range(self.parts)])
        self.codes = torch.empty(stored.blocks * stored.size, self.parts, dtype=torch.uint8)
        for number in range(stored.blocks):
            block = self._split(stored.block(number)).float()
            for j in range(self.parts):
                self.codes[number * stored.size : (number + 1) * stored.size, j] = _nearest(
                    block[:, j], self.centroids[j]
                )
        self.nbytes = self.codes.nbytes + self.centroids.nbytes
        self.starts = torch.arange(self.parts, dtype=torch.int32) * self.centroids.shape[1]

    def ask(self, queries: Tensor) -> _AskedCentroids:
        """The tables of products (parts * centroids, Q)."""
        split = self._split(queries.double()).float()
        products = torch.einsum("jcd,qjd->jcq", self.centroids, split)
        return _AskedCentroids(self, products.flatten(0, 1).contiguous())

    def _split(self, rows: Tensor) -> Tensor:
        filled = rows.new_zeros(len(rows), self.parts * _PART)
        filled[:, : self.stored.width] = rows
        return filled.view(len(rows), self.parts, _PART)


class _AskedCentroids:
    def __init__(self, way: Centroids, table: Tensor) -> None:
        self.way, self.table = way, table

    def estimates(self, first: int, last: int) -> Tensor:
        codes = self.way.codes[first * self.way.stored.size : last * self.way.stored.size]
        return embedding_bag(codes.int().add_(self.way.starts), self.table, mode="sum")

    def limits(self, first: int, last: int, least: Tensor) -> Tensor:
        lowest = torch.finfo(torch.float32).min
        return least.clamp(min=lowest).float().expand(last - first, -1)

    def scores(self, blocks: Tensor, asked: Tensor, estimates: Tensor) -> Tensor:  # noqa: ARG002 - other ways need them
        return estimates

    def take(self, which: Tensor) -> _AskedCentroids:
        return _AskedCentroids(self.way, self.table[:, which].contiguous())


def _kmeans(rows: Tensor) -> Tensor:
    """Centroids (c, w) of rows (n, w) in no particular order, from the first rows on."""
    centroids = rows[:_CENTROIDS].clone()
    for _ in range(_ROUNDS):
        nearest = _nearest(rows, centroids)
        counts = torch.bincount(nearest, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, nearest, rows)
        # A centroid that is nearest to no row stays where it is.
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
    return centroids


def _nearest(rows: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid's number for each row."""
    squares = (centroids * centroids).sum(1)
    return torch.cat([(squares - 2 * part @ centroids.T).argmin(1) for part in torch.split(rows, _CHUNK)])
