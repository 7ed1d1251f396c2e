"""The linear map in 8-bit integers by oneDNN's product, as torch ships it: what `int8_linear` decides, computed quicker.

The codes of a batch are the reference's bit for bit, their sums are whole numbers of 32 bits, and scale and bias come in
one pass over these. So an answer strays from the reference by its last rounding alone:

    |y' - y|  <=  4 * 2^-24 (|y - bias| + |bias|)

Whether this machine's kernel keeps to that, and gives a row the same bits in any batch, is tried with each weight as it
is packed: x86 without VNNI adds pairs of products in 16 bits, which overflow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .linears import CODES, int8_linear

__all__ = ["PackedLinear", "pack", "packed_linear"]

_ROUNDING = 4 * 2.0**-24
# The least number whose neighbours in float32 are the whole numbers, and half of it: adding it rounds, halves to even.
_WHOLE = 1.5 * 2**23
# Rows of a kernel's trial, beside those at the limit. Kernels differ by the number of rows.
_ROWS = 67


class PackedLinear:
    """A weight in oneDNN's layout, with the range its activations are rounded in; made by `pack`, never written to.

    Called with x (..., I) float32 and a bias (O,) or (1, O) float32 or None, gives y (..., O) float32. An infinite x counts
    as the end of its range and NaN as zero: who promises more checks in front. `nbytes` is what the packed weight takes.
    """

    def __init__(self, weight: Tensor, weight_scale: Tensor, x_scale: float, x_zero: int) -> None:
        self._outer, self._inner = weight.shape
        self._packed = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
        self._weight_scale = weight_scale.detach().contiguous()
        self._weight_zeros = torch.zeros(self._outer, dtype=torch.int64)
        self._scale, self._zero = x_scale, x_zero
        self._step = torch.tensor(x_scale, dtype=torch.float32)
        self._product: Any = torch.ops.onednn.qlinear_pointwise.default
        self.nbytes = weight.nbytes + self._weight_scale.nbytes + self._weight_zeros.nbytes

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The map of a batch. Cost: some 50 us whatever the size, and a pass over x beside the product."""
        if not x.numel():
            return x.new_empty(*x.shape[:-1], self._outer)
        low, high = CODES[0] - self._zero, CODES[1] - self._zero
        # The low byte of the number's bits is the rounded one, once its zero is added.
        bits = x.div(self._step).clamp_(low, high).add_(_WHOLE).view(torch.int32)
        codes = (bits.add_(self._zero) if self._zero else bits).to(torch.uint8)
        if bias is not None and bias.ndim > 1:
            bias = bias.reshape(-1)
        y: Tensor = self._product(
            codes,
            self._scale,
            self._zero,
            self._packed,
            self._weight_scale,
            self._weight_zeros,
            bias,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return y

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        return self


def packed_linear(packed: PackedLinear, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """`packed(x, bias)`, as a node of a graph calls it."""
    return packed(x, bias)


def pack(weight: Tensor, weight_scale: Tensor, x_scale: float, x_zero: int) -> PackedLinear | str:
    """The map of `int8_linear` with these constants, or why this machine's kernel does not stand for it.

    weight (O, I) int8 in [-127, 127]; weight_scale (O,) float32; x_scale and x_zero as there. Cost: packing, and the
    products of some 70 rows by both.

    Example:
        >>> packed = pack(torch.tensor([[127, -64]], dtype=torch.int8), torch.tensor([0.5]), 0.25, 128)
        >>> packed if isinstance(packed, str) else packed(torch.tensor([[0.26, 1.0]]))
        tensor([[-16.1250]])
    """
    try:
        made = PackedLinear(weight, weight_scale, x_scale, x_zero)
        return _wrong(made, weight, weight_scale, x_scale, x_zero) or made
    except (AttributeError, RuntimeError) as error:
        # A torch without the operator, or a machine it does not run on.
        return f"oneDNN's product of codes does not run here: {type(error).__name__}: {error}"[:300]


def _wrong(made: PackedLinear, weight: Tensor, weight_scale: Tensor, x_scale: float, x_zero: int) -> str:
    """What is wrong with the kernel's answers, or nothing."""
    codes = torch.randint(
        CODES[0], CODES[1] + 1, (_ROWS, weight.shape[1]), generator=torch.Generator().manual_seed(0)
    )
    # The largest sums of pairs: every code at its end, and those alone that meet weights of one sign.
    codes[0], codes[1] = CODES
    codes[2] = torch.where(weight[0] > 0, CODES[1], CODES[0])
    codes[3] = torch.where(weight[-1] < 0, CODES[1], CODES[0])
    x = (codes - x_zero) * torch.tensor(x_scale, dtype=torch.float32)
    right, found = int8_linear(x, weight, weight_scale, x_scale, x_zero), made(x)
    off = (found - right).abs()
    if not bool((off <= _ROUNDING * right.abs()).all()):
        return f"oneDNN's product of codes differs by {float(off.max()):.3g} on this processor"
    for rows in (1, 2, 16):
        if not torch.equal(made(x[:rows]), found[:rows]):
            return f"oneDNN's product of codes gives other bits at {rows} rows on this processor"
    return ""
