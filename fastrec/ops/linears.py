"""A linear map in 8-bit integers, with one scale of the activations for every batch there is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["CODES", "INT8_LINEAR", "centred", "int8_linear"]

CODES = (0, 255)
"""The least and the largest code of an activation."""

# Sums of products of codes below this are whole numbers of float32.
_EXACT = 2**24


@torch.library.custom_op("fastrec::int8_linear", mutates_args=())
def int8_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, x_scale: float, x_zero: int, bias: Tensor | None = None
) -> Tensor:
    """The linear map of activations rounded to 8 bits by weights of 8 bits.

        q = clamp(round(x / x_scale) + x_zero, 0, 255)                    halves to even
        y = ((q - x_zero) weight^T) * (x_scale weight_scale) + bias

    x (..., I) float32; weight (O, I) int8 in [-127, 127]; weight_scale (O,) float32, one for each output channel;
    x_scale a number that float32 holds; x_zero in [0, 255]; bias (O,) float32, constant or computed; y (..., O)
    float32. The sum of products is exact, so a row's answer depends on nothing but the row.

    An infinite x counts as the end of its range; NaN stays NaN here, but not in every kernel this is lowered to: who
    promises more checks in front. Kernels that add pairs of products in 16 bits (x86 without VNNI) are no lowering.

    Cost: about that of the float map, as the codes are multiplied in floating point; it is what fast kernels are
    judged by, not one of them.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference" (2018), equations 1 and 7.

    Example:
        >>> weight, scale = torch.tensor([[127, -64]], dtype=torch.int8), torch.tensor([0.5])
        >>> int8_linear(torch.tensor([[0.26, 1.0]]), weight, scale, 0.25, 128)
        tensor([[-16.1250]])
    """
    codes = centred(x, x_scale, x_zero)
    exact = torch.float32 if weight.shape[1] * 255 * 127 <= _EXACT else torch.float64
    sums = functional.linear(codes.to(exact), weight.to(exact))
    y = sums.to(torch.float32).mul_(weight_scale * x_scale)
    return y if bias is None else y.add_(bias)


def centred(x: Tensor, scale: float, zero: int) -> Tensor:
    """The codes of x by this range, less that of zero: whole numbers in float32, in the shape of x.

    Example:
        >>> centred(torch.tensor([-9.0, 0.0, 0.25, 0.75, 999.0]), 0.5, 3)
        tensor([ -3.,   0.,   0.,   2., 252.])
    """
    low, high = CODES
    return (x / x.new_tensor(scale)).round_().add_(zero).clamp_(low, high).sub_(zero)


@int8_linear.register_fake
def _(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


INT8_LINEAR = torch.ops.fastrec.int8_linear.default
"""The operator as graphs hold it."""
