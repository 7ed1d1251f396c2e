"""A convolution in 8-bit integers, with one range of its inputs and one of its results for every batch there is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .linears import CODES, centred

__all__ = ["INT8_CONVOLUTION", "int8_convolution"]

# Sums of products of codes below this are whole numbers of float32.
_EXACT = 2**24


@torch.library.custom_op("fastrec::int8_convolution", mutates_args=())
def int8_convolution(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    x_scale: float,
    x_zero: int,
    y_scale: float,
    y_zero: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The convolution of activations rounded to 8 bits by weights of 8 bits, its results rounded to 8 bits.

        q = clamp(round(x / x_scale) + x_zero, 0, 255)                    halves to even
        a = conv(q - x_zero, weight) + bias                               whole numbers
        r = clamp(round(a (x_scale weight_scale / y_scale)) + y_zero, 0, 255)
        y = (r - y_zero) * y_scale

    x (N, C, *S) float32, S of one or two dimensions; weight (O, C / groups, *K) int8 in [-127, 127]; weight_scale (O,)
    float32, one for each output channel; bias (O,) int32, in units of x_scale weight_scale; scales numbers that float32
    holds; zeros in [0, 255]; y (N, O, *S') float32. `stride` and `dilation` have a number for each dimension of S,
    `padding` one for each end, first all beginnings, then all ends: there x is zero.

    The sums are exact while they stay under 2**31, so an answer depends on nothing but its own row. A ReLU behind it is
    what the clamping does where y_zero is 0. Results are rounded because kernels give them so; to a reader that takes
    them in by the same range this costs nothing: codes come back as they were.

    An infinite x counts as the end of its range; a NaN stays NaN here, but not in every kernel this is lowered to: who
    promises more checks in front. Kernels that add pairs of products in 16 bits (x86 without VNNI) are no lowering.

    Cost: about that of the float convolution, as the codes are multiplied in floating point; it is what fast kernels
    are judged by, not one of them.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference" (2018), equations 1, 4 and 7.

    Example:
        >>> weight, scale, bias = torch.tensor([[[2, -1]]], dtype=torch.int8), torch.ones(1), torch.tensor([4], dtype=torch.int32)
        >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> int8_convolution(x, weight, scale, bias, 0.5, 0, 0.25, 0, [1], [1, 0], [1], 1)
        tensor([[[1.0000, 2.0000, 2.5000]]])
    """
    low, high = CODES
    spread = (-1, *(1 for _ in weight.shape[2:]))
    # torch pads the last dimension first.
    half = len(padding) // 2
    ends = [size for k in reversed(range(half)) for size in (padding[k], padding[half + k])]
    codes = functional.pad(centred(x, x_scale, x_zero), ends)
    sums = _sums(codes, weight, list(stride), list(dilation), groups) + bias.reshape(spread)
    step = x_scale * weight_scale / weight_scale.new_tensor(y_scale)
    found = (sums.float() * step.reshape(spread)).round_().add_(y_zero).clamp_(low, high)
    return found.sub_(y_zero).mul_(y_scale)


def _sums(codes: Tensor, weight: Tensor, stride: list[int], dilation: list[int], groups: int) -> Tensor:
    """The convolution of whole numbers, exact, in float64: in float32 over as many channels at a time as that holds."""
    convolve = functional.conv1d if weight.ndim == 3 else functional.conv2d
    channels = weight.shape[1]
    most = _EXACT // (CODES[1] * 127 * weight[0, 0].numel())
    if most < (1 if groups == 1 else channels):
        return convolve(codes.double(), weight.double(), None, stride, 0, dilation, groups)
    size = most if groups == 1 else codes.shape[1]
    parts = zip(torch.split(codes, size, 1), torch.split(weight.float(), size, 1), strict=True)
    found = [convolve(some, held, None, stride, 0, dilation, groups).double() for some, held in parts]
    return functools.reduce(Tensor.add_, found)


@int8_convolution.register_fake
def _(x: Tensor, weight: Tensor, *numbers: Any) -> Tensor:
    stride, padding, dilation, _ = numbers[-4:]
    kernel = weight.shape[2:]
    sizes = [
        (size + padding[k] + padding[k + len(kernel)] - dilation[k] * (kernel[k] - 1) - 1) // stride[k] + 1
        for k, size in enumerate(x.shape[2:])
    ]
    return x.new_empty(x.shape[0], weight.shape[0], *sizes)


INT8_CONVOLUTION = torch.ops.fastrec.int8_convolution.default
"""The operator as graphs hold it."""
