"""Lookups by codes: a row is put together from rows of a small table, which stays in the cache.

    products        x_v  =  [ C_0[c_v0] | ... | C_m-1[c_v,m-1] ]        parts side by side
    sums            x_v  =    C_0[c_v0] + ... + C_m-1[c_v,m-1]

The codebooks lie one below the other in one table (m k, w), and code j counts from j k, so either form is two lookups:
of the codes (V, m) uint8, and of the m rows they stand for. Both are made of whole numbers up to the last, so they run
in front of any session, and no row depends on the others of its batch.

One lookup of rows of 16 from a million, one thread, microseconds (float32: 2 at 26 ids, 33 at 2,600, 329 at 26,000;
int8: 7, 34, 305), parts of

| columns | bytes a row | 26 ids | 2,600 | 26,000 |
|---------|-------------|--------|-------|--------|
| 2       | 8           | 10     | 131   | 1,336  |
| 4       | 4           | 9      | 104   | 1,026  |
| 8       | 2           | 9      | 40    | 403    |

So it is a form for memory, not for time. One lookup for each part, joined, took 26 to 50, 86 to 271 and 650 to 5,800;
codes that are read as one whole number and taken apart by bytes 11, 47 to 111 and 350 to 1,140, which compilers of
graphs do not take; sums 10 to 13, 46 to 123 and 373 to 7,400.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...graph import add_constant, emit, value
from ..fusion.moves import allow_strides
from ..indirect import look_up
from ..quantization.hot_rows import Hot, hold_exact
from ..reads import Table, read_otherwise

__all__ = ["Coded", "Error", "Holder", "error_of", "unfit", "whole"]

aten = torch.ops.aten
_ENTRIES = 1 << 20
# A table of which a column is off by more than this share of its size is not itself.
_WORST = 0.8
# What the squares of float32 leave room for.
_SIZES = (1e-15, 1e15)


@dataclass(frozen=True)
class Coded:
    """A table (V, d) by codes (V, m) of `count` rows each of the codebook (m * count, w): side by side, or added up.

    Without codes, of V rows number v is the sum of rows v // `divisor` and `quotients` + v % `divisor`.
    """

    codebook: Tensor
    shape: tuple[int, int]
    sums: bool
    codes: Tensor | None = None
    count: int = 0
    divisor: int = 0
    quotients: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the codes; those of the codebook are counted where it is known who shares it."""
        return 0 if self.codes is None else self.codes.nbytes

    @property
    def parts(self) -> int:
        """How many rows of the codebook stand for one."""
        return 2 if self.codes is None else self.codes.shape[1]

    def rows(self, part: slice) -> Tensor:
        """These rows of the table (n, d), as a lookup gives them."""
        if self.codes is None:
            ids = torch.arange(self.shape[0])[part]
            places = torch.stack([ids // self.divisor, ids % self.divisor + self.quotients], 1)
        else:
            codes = self.codes[part]
            places = codes + self.count * torch.arange(codes.shape[1])
        found = self.codebook[places]
        return found.sum(1) if self.sums else found.flatten(1)[:, : self.shape[1]]


def unfit(table: Tensor) -> str:
    """Why codes are not for a table, or nothing."""
    low, high = map(float, table.aminmax())
    largest = max(-low, high)
    fit = largest == 0 or _SIZES[0] <= largest <= _SIZES[1]
    return "" if fit else f"it holds {low:.3g} to {high:.3g}"


@dataclass(frozen=True)
class Error:
    """How far rows are off: the squares of what they are off by and of what they are, by weight, and the column off most.

    The column's is root mean square, relative to what its entries are.
    """

    off: float
    size: float
    column: float

    def __str__(self) -> str:
        return f"rows {whole(self):.1%} off as calibration reads them, the worst column {self.column:.1%}"

    @property
    def refusal(self) -> str:
        """Why such a table would be worthless, or nothing."""
        return "" if self.column <= _WORST else f"a column would be off by {self.column:.0%} of its size"


def whole(*errors: Error) -> float:
    """How far all rows of these tables are off, root mean square, relative to what they are."""
    off, size = sum(one.off for one in errors), sum(one.size for one in errors)
    return (off / size) ** 0.5 if off else 0.0


def error_of(table: Tensor, coded: Coded, weights: Tensor, coarse: Tensor) -> Error:
    """What rows (V, d) of these weights (V,) lose by their codes; those that `coarse` (V,) gives 0 are exact."""
    off = torch.zeros(table.shape[1], dtype=torch.float64)
    size = torch.zeros(table.shape[1], dtype=torch.float64)
    step = max(1, _ENTRIES // table.shape[1])
    for start in range(0, len(table), step):
        part = slice(start, start + step)
        right = table[part].double()
        off += ((coded.rows(part) - right).square() * coarse[part, None]).sum(0)
        size += (right.square() * weights[part, None]).sum(0)
    return Error(float(off.sum()), float(size.sum()), float((off / size.clamp_min(1e-300)).max().sqrt()))


class Holder:
    """Puts coded tables into a graph; a codebook of several tables is put there once."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        # With the tensors: an address alone may come again.
        self._held: dict[object, tuple[fx.Node, Tensor]] = {}

    def hold(self, table: Table, coded: Coded, hot: Hot | None) -> None:
        """Every lookup of the table as one by its codes; hot rows, whose codes are those of zeros, as exact ones."""
        gm = self._gm
        book = self._once(id(coded.codebook), f"{table.name}_codebook", coded.codebook)
        # Codebooks are not to be taken for tables in their turn.
        gm.meta["codebooks"] = tuple(dict.fromkeys((*gm.meta.get("codebooks", ()), str(book.target))))
        codes = offsets = None
        if coded.codes is not None:
            codes = add_constant(gm, f"{table.name}_codes", coded.codes)
            parts = coded.codes.shape[1]
            offsets = self._once(
                (parts, coded.count), f"{table.name}_offsets", coded.count * torch.arange(parts)
            )
        exact = hold_exact(gm, table, hot.rows) if hot else None

        def rows_of(ids: fx.Node) -> fx.Node:
            found = self._sums if coded.sums else self._products
            rows = found(coded, book, codes, offsets, ids)
            return emit(gm, aten.add.Tensor, (rows, look_up(gm, *exact, ids))) if exact else rows

        read_otherwise(gm, table, rows_of)
        if not coded.sums:
            allow_strides(gm)

    def _once(self, key: object, name: str, tensor: Tensor) -> fx.Node:
        if key not in self._held:
            self._held[key] = add_constant(self._gm, name, tensor), tensor
        return self._held[key][0]

    def _places(self, coded: Coded, codes: fx.Node | None, offsets: fx.Node | None, ids: fx.Node) -> fx.Node:
        """The rows of the codebook that stand for these ids: ids of any shape S, result (*S, m)."""
        gm = self._gm
        if codes is not None:
            return emit(gm, aten.add.Tensor, (emit(gm, aten.embedding.default, (codes, ids)), offsets))
        whole = emit(gm, aten.floor_divide.default, (ids, coded.divisor))
        rest = emit(gm, aten.remainder.Scalar, (ids, coded.divisor))
        rest = emit(gm, aten.add.Tensor, (rest, coded.quotients))
        return emit(gm, aten.stack.default, ([whole, rest], -1))

    def _products(
        self, coded: Coded, book: fx.Node, codes: fx.Node | None, offsets: fx.Node | None, ids: fx.Node
    ) -> fx.Node:
        gm = self._gm
        parts = emit(gm, aten.embedding.default, (book, self._places(coded, codes, offsets, ids)))
        rows = emit(gm, aten.flatten.using_ints, (parts, -2, -1))
        width = coded.shape[1]
        if value(rows).shape[-1] == width:
            return rows
        return emit(gm, aten.slice.Tensor, (rows, value(rows).ndim - 1, 0, width))

    def _sums(
        self, coded: Coded, book: fx.Node, codes: fx.Node | None, offsets: fx.Node | None, ids: fx.Node
    ) -> fx.Node:
        """Ids in one row: the sums of (n, m) rows are bags in torch."""
        gm, shape = self._gm, value(ids).shape
        flat = ids if len(shape) == 1 else emit(gm, aten.reshape.default, (ids, [-1]))
        parts = emit(gm, aten.embedding.default, (book, self._places(coded, codes, offsets, flat)))
        rows = emit(gm, aten.sum.dim_IntList, (parts, [1]))
        if flat is ids:
            return rows
        sizes = [
            n if isinstance(n, int) else emit(gm, aten.sym_size.int, (ids, k)) for k, n in enumerate(shape)
        ]
        return emit(gm, aten.reshape.default, (rows, [*sizes, coded.shape[1]]))
