"""Scores by products of 8-bit integers, with a bound on what the rounding hides.

    x = s c + e,   q = t g + f          c, g whole numbers from -127 to 127, e and f what rounding left
    x . q  =  s t (c . g)  +  (x - e) . f  +  e . q
          <=  s t (c . g)  +  (|x| + |e|) |f|  +  |e| |q|

c . g is an exact integer, computed by the processor's 8-bit instructions from a fourth of the bytes. Rows and queries
are first turned by a random rotation, which no product notices: entries are then of one size whatever the data, and
rows of about one length, as those of a block are, share one scale s at hardly any loss. So a score is compared in
integers: there is a least c . g for each block and query.

Source: the rotation, J. Gao and C. Long, "RaBitQ: quantizing high-dimensional vectors with a theoretical error bound",
SIGMOD 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quiet import reason_of
from .stored import EPS, LOST, Stored

__all__ = ["Codes", "integer_products"]

_TOP, _TINY, _MULTIPLE = 127, 1e-300, 16
_WIDEST = 2**31 // _TOP**2 - _MULTIPLE
_SEED = 20240229


def integer_products(width: int) -> str | None:
    """Why products of 8-bit integers of this width cannot be had here; None where they are exact.

    Some processors add pairs of products in 16 bits, which overflow.
    """
    if width > _WIDEST:
        return f"a product of width {width:,} would not fit 32 bits"
    width = _padded(width)
    rows = torch.randint(-_TOP, _TOP + 1, (_MULTIPLE, width), generator=torch.Generator().manual_seed(_SEED))
    rows[0], rows[1] = _TOP, -_TOP
    try:
        found = torch._int_mm(rows.char(), rows.char().T)
    except (RuntimeError, AttributeError, NotImplementedError) as error:  # where torch has no such product
        return reason_of(error)
    return None if torch.equal(found.long(), rows @ rows.T) else "this processor rounds 8-bit products"


def _padded(width: int) -> int:
    # torch 2.13 gets products of width 1 wrong; kernels like whole vectors.
    return -(-width // _MULTIPLE) * _MULTIPLE


class Codes:
    """Rows as 8-bit integers with one scale per block; exact with the bound, `bounded=False` estimates without it."""

    def __init__(self, stored: Stored, *, bounded: bool = True) -> None:
        self.stored, self.exact = stored, bounded
        self.name = "int8 bounds" if bounded else "int8"
        width = _padded(stored.width)
        mixed = torch.randn(width, width, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)
        self.rotation = torch.linalg.qr(mixed).Q[: stored.width]
        self.codes = torch.empty(stored.blocks * stored.size, width, dtype=torch.int8)
        self.scales = torch.empty(stored.blocks, dtype=torch.float64)
        self.left = torch.empty(stored.blocks, dtype=torch.float64)
        for number in range(stored.blocks):
            turned = stored.block(number) @ self.rotation
            self.scales[number] = scale = turned.abs().max() / _TOP
            rounded = (turned / scale.clamp(min=_TINY)).round()
            self.codes[number * stored.size : (number + 1) * stored.size] = rounded
            self.left[number] = (turned - rounded * scale).norm(dim=1).max()
        self.nbytes = self.codes.nbytes + self.scales.nbytes + self.left.nbytes + self.rotation.nbytes

    def ask(self, queries: Tensor) -> _AskedCodes:
        """The queries turned, as integers with a scale each."""
        turned = queries.double() @ self.rotation
        scales = turned.abs().amax(1) / _TOP
        rounded = (turned / scales.clamp(min=_TINY)[:, None]).round()
        left = (turned - rounded * scales[:, None]).norm(dim=1)
        return _AskedCodes(self, rounded.char(), scales, left, turned.norm(dim=1))


class _AskedCodes:
    def __init__(self, way: Codes, codes: Tensor, scales: Tensor, left: Tensor, lengths: Tensor) -> None:
        self.way, self.codes, self.scales, self.left, self.lengths = way, codes, scales, left, lengths
        self.buffer = torch.empty(0, dtype=torch.int32)

    def estimates(self, first: int, last: int) -> Tensor:
        size = self.way.stored.size
        rows = self.way.codes[first * size : last * size]
        if len(self.buffer) < len(rows):
            self.buffer = torch.empty(len(rows), len(self.codes), dtype=torch.int32)
        return torch._int_mm(rows, self.codes.T, out=self.buffer[: len(rows)])

    def limits(self, first: int, last: int, least: Tensor) -> Tensor:
        limits = least
        if self.way.exact:
            caps, left = self.way.stored.caps[first:last, None], self.way.left[first:last, None]
            # The last two are for what rounding to float32 may add to a score.
            limits = least - (caps + left) * self.left - left * self.lengths
            limits = limits - EPS * caps * self.lengths - LOST
        units = self.way.scales[first:last, None] * self.scales
        whole = (limits / units.clamp(min=_TINY)).floor() - 1
        return whole.clamp(-(2.0**31) + 1, 2.0**31 - 1).int()

    def scores(self, blocks: Tensor, asked: Tensor, estimates: Tensor) -> Tensor:
        return (estimates * self.way.scales[blocks] * self.scales[asked]).float()

    def take(self, which: Tensor) -> _AskedCodes:
        return _AskedCodes(
            self.way, self.codes[which], self.scales[which], self.left[which], self.lengths[which]
        )
