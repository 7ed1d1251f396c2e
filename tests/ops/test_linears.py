"""The reference of a linear map in 8 bits, against whole numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastrec.ops import int8_linear


def made(inner: int, outer: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight codes with the extremes among them, their scales, and a bias."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (outer, inner), generator=rng).to(torch.int8)
    weight[0], weight[1] = 127, -127
    return weight, torch.rand(outer, generator=rng) / 100 + 1e-4, torch.randn(outer, generator=rng)


def whole(x: Tensor, weight: Tensor, weight_scale: Tensor, x_scale: float, x_zero: int) -> np.ndarray:
    """The sums of products in int64, then scaled in float64."""
    codes = np.clip(np.rint(x.numpy() / np.float32(x_scale)) + np.float32(x_zero), 0, 255).astype(np.int64)
    sums = (codes - x_zero) @ weight.numpy().astype(np.int64).T
    return sums * (weight_scale.double().numpy() * np.float64(np.float32(x_scale)))


# 518 is the widest whose sums float32 holds; 4,096 exceeds it.
@pytest.mark.parametrize("inner", [1, 7, 518, 519, 4096])
@pytest.mark.parametrize("zero", [0, 128, 255])
def test_it_is_arithmetic_of_whole_numbers(inner: int, zero: int) -> None:
    weight, scale, bias = made(inner, 5)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(40, inner, generator=rng) * 3
    # All the way at both ends of the range, and beyond.
    x[0], x[1], x[2], x[3] = 1e9, -1e9, 1e30, float("inf")
    exact = whole(x, weight, scale, 0.02, zero)
    got = int8_linear(x, weight, scale, 0.02, zero).double().numpy()
    # One rounding of the sum, one of the scale, one of the product: in float32.
    assert np.abs(got - exact).max() <= 3 * 2**-24 * np.abs(exact).max() + 1e-30
    assert (np.abs(got - exact) <= 3 * 2**-24 * np.abs(exact) + 1e-30).all()
    with_bias = int8_linear(x, weight, scale, 0.02, zero, bias)
    assert torch.equal(with_bias, int8_linear(x, weight, scale, 0.02, zero) + bias)


def test_halves_go_to_even_codes() -> None:
    weight, scale = torch.tensor([[1]], dtype=torch.int8), torch.ones(1)
    x = torch.tensor([[0.5], [1.5], [2.5], [-0.5], [-1.5], [3.5]])
    assert int8_linear(x, weight, scale, 1.0, 10).flatten().tolist() == [0, 2, 2, 0, -2, 4]


def test_any_number_of_dimensions_and_no_rows() -> None:
    weight, scale, bias = made(6, 4)
    x = torch.randn(3, 2, 5, 6)
    flat = int8_linear(x.reshape(-1, 6), weight, scale, 0.02, 100, bias)
    assert torch.equal(int8_linear(x, weight, scale, 0.02, 100, bias), flat.reshape(3, 2, 5, 4))
    assert int8_linear(x[:0], weight, scale, 0.02, 100, bias).shape == (0, 2, 5, 4)
    assert int8_linear(x[0, 0, 0], weight, scale, 0.02, 100).shape == (4,)


@pytest.mark.parametrize("inner", [60, 700])
def test_a_row_depends_on_no_other(inner: int) -> None:
    weight, scale, bias = made(inner, 24)
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(300, inner, generator=rng)
    x[7], x[11] = 1e3, 1e30
    together = int8_linear(x, weight, scale, 0.03, 120, bias)
    assert torch.isfinite(together).all()
    alone = torch.cat([int8_linear(row[None], weight, scale, 0.03, 120, bias) for row in x])
    assert torch.equal(alone, together)
    for _ in range(20):
        order = torch.randperm(len(x), generator=rng)
        cuts = torch.randint(1, 60, (20,), generator=rng).cumsum(0).clamp(max=len(x)).tolist()
        parts = [int8_linear(x[part], weight, scale, 0.03, 120, bias) for part in order.tensor_split(cuts)]
        assert torch.equal(torch.cat(parts), together[order])


def test_nan_stays_in_its_row() -> None:
    weight, scale, bias = made(8, 4)
    x = torch.randn(3, 8)
    x[1, 2] = float("nan")
    y = int8_linear(x, weight, scale, 0.02, 128, bias)
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()


def test_the_operator_is_as_torch_asks_of_one() -> None:
    weight, scale, bias = made(8, 4)
    for given in ((), (bias,)):
        torch.library.opcheck(
            torch.ops.fastrec.int8_linear.default, (torch.randn(3, 8), weight, scale, 0.02, 128, *given)
        )
