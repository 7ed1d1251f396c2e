"""The index over an item matrix: `TopK`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError, MeasurementError
from ..measure import interleaved
from .codes import Codes, integer_products
from .pq import Centroids
from .products import Prefix, Products
from .read import Seen, read_count, read_matrix, read_seen
from .report import TopKReport, WayTimed
from .searches import AllScores, Reranked, Scanned, Search
from .stored import Stored

__all__ = ["TopK"]

_SAMPLE, _SEED = 1024, 20240229
_HOPELESS = 3.0
"""A way this many times slower than the fastest is not tried with more queries."""

_LEAST_ROUNDS, _MOST_ROUNDS = 5, 100
_ENERGY = 0.9
_LONGEST = 2.0**126
"""Products, and lengths, up to here are numbers in float32, and so are their sums."""

Wayname = Literal["all scores", "products", "prefix", "int8 bounds"]
_WAYS = ("all scores", "products", "prefix", "int8 bounds")


class TopK:
    """The k items x of a matrix with the highest products x . q, for queries q.

        index(Q, k)  =  k highest of  Q X^T  (Q, M), row by row          X (M, d), Q (n, d), float32

    A score is added up in float64 and rounded to float32 once; equal ones come in the order of their rows. It depends on
    its own query alone. Four exact ways are measured on `queries` (items are drawn for want of them), at each number of
    queries in `batches`, and the fastest serves calls of about that many; `way` asks for one instead. All but the first walk the
    rows by falling length, and end where |x| |q| cannot reach the k-th score:

    - "all scores": one product, and two passes over the scores;
    - "products": products in float32 and, of rows near the k-th score, again in float64;
    - "prefix": products of the first singular directions; of the rest the Cauchy-Schwarz bound;
    - "int8 bounds": products of 8-bit integers, with a bound on what the rounding hides.

    `prefilter="int8"` or `"pq"` (product quantisation) is approximate: the `candidates` (10 k unless told) with the highest
    estimates are scored exactly, the others never. `report` has the figures, and the recall measured on the sample.

    `items` are kept, not copied: do not write to them. Calls are thread-safe. Raises `InputError` for what does not fit:
    shapes, dtypes, NaN, k. Cost: each way makes a copy of the matrix, in its own form; those that do not serve are let go.
    Measuring takes some `seconds` for each number of queries.

    Source: see `products`, `codes`, `pq`.

    Example:
        >>> items = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 2.0]])
        >>> index = TopK(items, seconds=0.01)
        >>> scores, rows = index(torch.tensor([[1.0, 1.0]]), 3)
        >>> scores.tolist(), rows.tolist()
        ([[2.0, 2.0, 2.0]], [[1, 2, 3]])
        >>> index(torch.tensor([[1.0, 1.0]]), 3, seen=[[1, 3]])[1].tolist()
        [[2, 0, -1]]
    """

    def __init__(
        self,
        items: Tensor,
        *,
        queries: Tensor | None = None,
        k: int = 10,
        batches: Sequence[int] = (1, 16, 256),
        way: Wayname | None = None,
        prefilter: Literal["int8", "pq"] | None = None,
        candidates: int | None = None,
        seconds: float = 1.0,
    ) -> None:
        matrix = read_matrix(items, "items")
        if 0 in matrix.shape:
            raise InputError(f"items: got shape {tuple(matrix.shape)}, expected at least one row and column")
        if way is not None and way not in _WAYS:
            raise InputError(f"way: got {way!r:.80}, expected one of {', '.join(_WAYS)}")
        if prefilter not in (None, "int8", "pq") or (prefilter is not None and way is not None):
            raise InputError(f"prefilter: got {prefilter!r:.80}, expected 'int8' or 'pq', and no `way` then")
        if candidates is not None:
            if prefilter is None:
                raise InputError("candidates: needs a prefilter; an exact search has none")
            read_count(candidates, "candidates")
        self._asked, self._prefilter, self._candidates = way, prefilter, candidates
        self._batches = tuple(sorted({read_count(batch, "batches") for batch in batches}))
        if not self._batches:
            raise InputError("batches: got none, expected numbers of queries")
        self._seconds = seconds
        self._stored = Stored(matrix)
        if float(self._stored.caps[0]) > _LONGEST:
            row = int(self._stored.order[0])
            raise InputError(f"items, row {row}: its length would overflow float32", feature="items", row=row)
        self._serving: dict[int, Search] = {}
        self.report = self.tune(queries, min(read_count(k, "k"), len(matrix)))

    @torch.no_grad()
    def tune(self, queries: Tensor | None = None, k: int = 10) -> TopKReport:
        """Measures the ways on these queries (n, d) and keeps the fastest; gives, and keeps, the report.

        Without queries, up to 1,024 items are drawn as such. Raises `MeasurementError` if two exact ways find
        different rows.
        """
        stored = self._stored
        k = read_count(k, "k", stored.count)
        generator = torch.Generator().manual_seed(_SEED)
        source = stored.items if queries is None else self._read_queries(queries)
        if not len(source):
            raise InputError("queries: got none, expected at least one to measure with")
        # Zeros ask for nothing, and say nothing of how long others take.
        asking = source[source.any(1)]
        if not len(asking):
            asking = torch.ones(1, stored.width)
        sample = asking[torch.randperm(len(asking), generator=generator)[:_SAMPLE]]
        if queries is None:
            # A query's length changes no order; theirs might overflow.
            sample = sample / float(stored.caps[0].clamp(min=1e-30))
        absent: dict[str, str] = {}
        ways = self._ways(absent)
        self._compare(ways, sample[:16], k)
        timed: list[WayTimed] = []
        serving: dict[int, Search] = {}
        tried = dict(ways)
        for batch in self._batches:
            found = self._timed(tried, sample, batch, k, generator)
            best = min(found, key=lambda name: found[name][0])
            serving[batch] = tried[best]
            timed += [
                WayTimed(name, batch, seconds, rounds, tried[name].nbytes, name == best)
                for name, (seconds, rounds) in found.items()
            ]
            for name, (seconds, _) in found.items():
                if seconds > _HOPELESS * found[best][0]:
                    absent[name] = f"too slow at {batch:,} queries to be tried with more"
                    del tried[name]
        self._serving = serving
        exact = self._prefilter is None
        self.report = TopKReport(
            stored.count,
            stored.width,
            k,
            len(sample),
            queries is None,
            tuple(timed),
            absent,
            exact,
            1.0 if exact else self._recall(sample[:256], k),
        )
        return self.report

    @torch.no_grad()
    def __call__(self, queries: Tensor, k: int, seen: Seen | None = None) -> tuple[Tensor, Tensor]:
        """The k best items for each query (n, d): their scores (n, k), highest first, and their rows (n, k).

        `seen` are rows not to be given: for each query a vector, or one tensor (n, s) filled up with -1. Where fewer
        than k items are left, the last ones have row -1 and score -inf. Raises `InputError` for a k that is not from 1
        to the number of items, queries that do not fit or are not finite; `IdOutOfRangeError` for seen rows that
        there are not.
        """
        stored = self._stored
        k = read_count(k, "k", stored.count)
        matrix = self._read_queries(queries)
        left_out = None if seen is None else read_seen(seen, stored, len(matrix))
        if not len(matrix):
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.long)
        most = self._batches[-1]
        found = []
        for start in range(0, len(matrix), most):
            part = matrix[start : start + most]
            way = self._serving[min(self._batches, key=lambda b: abs(math.log(b / len(part))))]
            found.append(
                way.find(part, k, None if left_out is None else left_out.of(start, start + len(part)))
            )
        return torch.cat([best.scores for best in found]), torch.cat([best.rows for best in found])

    @property
    def nbytes(self) -> int:
        """Bytes kept beside the items."""
        return self._stored.nbytes + sum({way.name: way.nbytes for way in self._serving.values()}.values())

    def __repr__(self) -> str:
        ways = ", ".join(dict.fromkeys(way.name for way in self._serving.values()))
        return f"TopK({self._stored.count:,} items of width {self._stored.width}, {ways})"

    def _read_queries(self, queries: Tensor) -> Tensor:
        matrix = read_matrix(queries, "queries", self._stored.width)
        most = float(self._stored.caps[0])
        lengths = matrix.double().norm(dim=1)
        if bool((lengths * most > _LONGEST).any()):
            row = int(lengths.argmax())
            raise InputError(
                f"queries, row {row}: its scores would overflow float32", feature="queries", row=row
            )
        return matrix

    def _ways(self, absent: dict[str, str]) -> dict[str, Search]:
        """The ways that this index may use; why not, of the others."""
        stored = self._stored
        integers = integer_products(stored.width)
        if self._prefilter == "pq":
            return {"pq": Reranked(stored, Centroids(stored), self._candidates)}
        if integers is not None and (self._prefilter == "int8" or self._asked == "int8 bounds"):
            raise InputError(
                f"8-bit products cannot be had here: {integers}. Leave out the way or prefilter."
            )
        if self._prefilter == "int8":
            return {"int8": Reranked(stored, Codes(stored, bounded=False), self._candidates)}
        makers: dict[str, Callable[[], Search]] = {
            "all scores": lambda: AllScores(stored),
            "products": lambda: Scanned(stored, Products(stored)),
        }
        kept = _prefix(stored)
        if kept is not None:
            makers["prefix"] = lambda: Scanned(stored, Prefix(stored, kept))
        if integers is None:
            makers["int8 bounds"] = lambda: Scanned(stored, Codes(stored))
        for name, reason in (
            ("prefix", "the rows are too narrow" if kept is None else None),
            ("int8 bounds", integers),
        ):
            if reason is not None:
                if self._asked == name:
                    raise InputError(f"way: {name!r} cannot be had here: {reason}")
                absent[name] = reason
        return {name: make() for name, make in makers.items() if self._asked in (None, name)}

    def _compare(self, ways: dict[str, Search], sample: Tensor, k: int) -> None:
        """Raises `MeasurementError` unless all exact ways find the same."""
        exact = (
            {name: way.find(sample, k, None).rows for name, way in ways.items()}
            if not self._prefilter
            else {}
        )
        first = next(iter(exact.values()), None)
        for name, rows in exact.items():
            if first is not None and not torch.equal(rows, first):
                raise MeasurementError(
                    f"{name!r} finds other rows than {next(iter(exact))!r}. Ask for way='products'."
                )

    def _timed(
        self, ways: dict[str, Search], sample: Tensor, batch: int, k: int, generator: torch.Generator
    ) -> dict[str, tuple[float, int]]:
        """The median of a call of `batch` queries, in seconds, and the number of rounds."""

        def draw(_: int) -> Tensor:
            return sample[torch.randint(len(sample), (batch,), generator=generator)]

        calls = {name: partial(way.find, k=k, left_out=None) for name, way in ways.items()}
        samples = interleaved(
            calls,
            draw,
            seconds=self._seconds,
            min_rounds=_LEAST_ROUNDS,
            max_rounds=_MOST_ROUNDS,
            warmup=1,
        )
        return {name: (float(torch.tensor(samples.seconds[name]).median()), samples.rounds) for name in ways}

    def _recall(self, sample: Tensor, k: int) -> float:
        exact = AllScores(self._stored).find(sample, k, None).rows
        found = self._serving[self._batches[-1]].find(sample, k, None).rows
        return float((exact[:, :, None] == found[:, None, :]).any(2).float().mean())


def _prefix(stored: Stored) -> int | None:
    """How many singular directions to keep: those that hold nine tenths of the energy, but at most half of them.

    One less than a multiple of 8: the length of the rest is one more column.
    """
    if stored.width < 16:
        return None
    part = stored.items[:: max(1, stored.count >> 16)].double()
    energy = torch.linalg.eigvalsh(part.T @ part).flip(0).cumsum(0)
    needed = int((energy < _ENERGY * energy[-1]).sum()) + 1
    return min(-(-(needed + 1) // 8) * 8, stored.width // 16 * 8) - 1
