"""The reference of a convolution in 8 bits, against whole numbers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastrec.ops import int8_convolution

RANGES = (0.03, 120, 0.5, 100)


def made(outer: int, inner: int, *kernel: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight codes with the extremes among them, their scales, and codes of a bias."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (outer, inner, *kernel), generator=rng).to(torch.int8)
    weight[0], weight[-1] = 127, -127
    bias = torch.randint(-(2**18), 2**18, (outer,), generator=rng).to(torch.int32)
    return weight, torch.rand(outer, generator=rng) / 100 + 1e-4, bias


def whole(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor,
    x_scale: float, x_zero: int, y_scale: float, y_zero: int,
    stride: list[int], padding: list[int], dilation: list[int], groups: int,
) -> np.ndarray:  # fmt: skip
    """One sum in int64 after the other, scaled in float32 as the operator says."""
    d = len(stride)
    codes = np.clip(np.rint(x.numpy() / np.float32(x_scale)) + x_zero, 0, 255).astype(np.int64) - x_zero
    codes = np.pad(codes, [(0, 0), (0, 0), *zip(padding[:d], padding[d:], strict=True)])
    w, kernel = weight.numpy().astype(np.int64), weight.shape[2:]
    spans = [dilation[k] * (kernel[k] - 1) + 1 for k in range(d)]
    sizes = [(codes.shape[2 + k] - spans[k]) // stride[k] + 1 for k in range(d)]
    sums = np.zeros((len(x), len(w), *sizes), np.int64)
    outer, inner = len(w) // groups, w.shape[1]
    for place in itertools.product(*map(range, sizes)):
        starts = [place[k] * stride[k] for k in range(d)]
        window = codes[
            (slice(None), slice(None), *(slice(a, a + s, g) for a, s, g in zip(starts, spans, dilation, strict=True)))
        ]  # fmt: skip
        for o in range(len(w)):
            group = o // outer * inner
            part = window[:, group : group + inner]
            sums[(slice(None), o, *place)] = (part * w[o]).reshape(len(x), -1).sum(1)
    spread = (-1, *(1 for _ in kernel))
    sums += bias.numpy().astype(np.int64).reshape(spread)
    step = np.float32(x_scale) * weight_scale.numpy() / np.float32(y_scale)
    found = np.clip(np.rint(sums.astype(np.float32) * step.reshape(spread)) + y_zero, 0, 255)
    return (found - y_zero).astype(np.float32) * np.float32(y_scale)


SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], list[Any]]] = {
    "2d": ((6, 9, 8), (4, 6, 3, 3), [[1, 1], [1, 1, 1, 1], [1, 1], 1]),
    "pointwise": ((700, 3, 4), (4, 700, 1, 1), [[1, 1], [0, 0, 0, 0], [1, 1], 1]),
    "strided, dilated, uneven ends": ((6, 11, 9), (4, 6, 3, 2), [[2, 1], [0, 1, 2, 0], [1, 2], 1]),
    "groups": ((6, 7, 7), (9, 2, 3, 3), [[2, 2], [1, 1, 1, 1], [1, 1], 3]),
    "wide groups": ((240, 4, 4), (4, 120, 3, 3), [[1, 1], [1, 1, 1, 1], [1, 1], 2]),
    "depthwise": ((6, 7, 7), (6, 1, 3, 3), [[1, 1], [1, 1, 1, 1], [1, 1], 6]),
    "more than float32 holds": ((130, 5, 5), (3, 130, 3, 3), [[1, 1], [1, 1, 1, 1], [1, 1], 1]),
    "a kernel that float32 does not hold": ((2, 24, 25), (2, 2, 24, 22), [[1, 1], [0, 0, 0, 0], [1, 1], 1]),
    "1d": ((6, 9), (4, 6, 3), [[1], [1, 1], [1], 1]),
    "1d, even kernel": ((6, 9), (4, 6, 4), [[1], [1, 2], [1], 1]),
    "1d, strided, dilated": ((6, 12), (4, 3, 3), [[2], [2, 0], [2], 2]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zeros", [(0, 0), (120, 131), (255, 255)])
def test_it_is_arithmetic_of_whole_numbers(shape: str, zeros: tuple[int, int]) -> None:
    sizes, weights, geometry = SHAPES[shape]
    weight, scale, bias = made(*weights)
    x = torch.randn(4, *sizes, generator=torch.Generator().manual_seed(1)) * 3
    # All the way at both ends of the range, and beyond.
    x[0], x[1, 0], x[2, 1] = 1e9, -1e30, float("inf")
    # A range of results that most of them fall into.
    wide = float(torch.tensor(0.02 * 0.005 * 127 * weight[0].numel() ** 0.5))
    given = (weight, scale, bias, 0.02, zeros[0], wide, zeros[1], *geometry)
    got = int8_convolution(x, *given)
    assert np.array_equal(got.numpy(), whole(x, *given))
    assert got.std() > 0


def test_halves_go_to_even_codes() -> None:
    weight, bias = torch.ones(1, 1, 1, dtype=torch.int8), torch.zeros(1, dtype=torch.int32)
    x = torch.tensor([[[0.5, 1.5, 2.5, -0.5, -1.5, 3.5]]])
    same = int8_convolution(x, weight, torch.ones(1), bias, 1.0, 10, 1.0, 10, [1], [0, 0], [1], 1)
    assert same.flatten().tolist() == [0, 2, 2, 0, -2, 4]
    halved = int8_convolution(x * 2, weight, torch.ones(1), bias, 1.0, 10, 2.0, 10, [1], [0, 0], [1], 1)
    assert torch.equal(halved, same * 2)


def test_codes_that_a_reader_takes_in_by_the_same_range_come_back() -> None:
    weight, scale, bias = made(5, 4, 3)
    y = int8_convolution(
        torch.randn(9, 4, 8), weight, scale, bias, 0.03, 128, 0.0317, 77, [1], [1, 1], [1], 1
    )
    eye, one = torch.eye(5, dtype=torch.int8)[:, :, None], torch.ones(5)
    again = int8_convolution(y, eye, one, 0 * bias, 0.0317, 77, 0.0317, 77, [1], [0, 0], [1], 1)
    assert torch.equal(again, y)


def test_no_rows() -> None:
    weight, scale, bias = made(5, 4, 3, 3)
    geometry = ([2, 1], [1, 1, 0, 1], [1, 1], 1)
    assert int8_convolution(torch.randn(0, 4, 8, 8), weight, scale, bias, *RANGES, *geometry).shape == (
        0,
        5,
        4,
        8,
    )


@pytest.mark.parametrize("channels", [6, 130])
def test_a_row_depends_on_no_other(channels: int) -> None:
    weight, scale, bias = made(8, channels, 3, 3)
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(60, channels, 5, 5, generator=rng)
    x[7], x[11] = 1e3, 1e30
    geometry = ([1, 1], [1, 1, 1, 1], [1, 1], 1)
    together = int8_convolution(x, weight, scale, bias, *RANGES, *geometry)
    assert torch.isfinite(together).all()
    alone = [int8_convolution(row[None], weight, scale, bias, *RANGES, *geometry) for row in x]
    assert torch.equal(torch.cat(alone), together)
    for _ in range(20):
        order = torch.randperm(len(x), generator=rng)
        cuts = torch.randint(1, 12, (8,), generator=rng).cumsum(0).clamp(max=len(x)).tolist()
        parts = [
            int8_convolution(x[part], weight, scale, bias, *RANGES, *geometry)
            for part in order.tensor_split(cuts)
        ]
        assert torch.equal(torch.cat(parts), together[order])


def test_nan_stays_in_its_row() -> None:
    weight, scale, bias = made(5, 4, 3)
    x = torch.randn(3, 4, 8)
    x[1, 2, 0] = float("nan")
    y = int8_convolution(x, weight, scale, bias, *RANGES, [1], [1, 1], [1], 1)
    assert y[1, :, :2].isnan().all() and y[1, :, 2:].isfinite().all() and y[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shape", ["strided, dilated, uneven ends", "1d, strided, dilated"])
def test_the_operator_is_as_torch_asks_of_one(shape: str) -> None:
    sizes, weights, geometry = SHAPES[shape]
    torch.library.opcheck(
        torch.ops.fastrec.int8_convolution.default,
        (torch.randn(3, *sizes), *made(*weights), *RANGES, *geometry),
    )
