"""The nearest linear map on the calibration, and one that other rows agree with."""

from __future__ import annotations

import pytest
import torch

from fastrec.techniques.pruning.least_squares import Rows, affine, refitted

from .models import numbers


def test_a_map_is_found_again() -> None:
    x, weight, bias = 3 * numbers(200) + 5, numbers(4, seed=2), numbers(1, 4, seed=3)[0]
    found, shift = affine(x, x @ weight.t() + bias, ridge=1e-12)
    torch.testing.assert_close(found, weight.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shift, bias.double(), rtol=1e-3, atol=1e-3)


def test_it_is_where_the_slope_of_what_it_minimises_is_zero() -> None:
    x, y, before = (numbers(*shape).double() for shape in ((50, 6, 1), (50, 3, 2), (3, 6, 3)))
    weight, bias = affine(x, y, before, ridge=0.1)
    variance = (x - x.mean(0)).square().sum(0).mean()
    weight.requires_grad_(), bias.requires_grad_()
    off = (y - x @ weight.t() - bias).square().sum() + 0.1 * variance * (weight - before).square().sum()
    off.backward()  # type: ignore[no-untyped-call]  # `Tensor.backward` has no types
    assert weight.grad is not None and bias.grad is not None
    assert float(weight.grad.abs().max()) < 1e-9 and float(bias.grad.abs().max()) < 1e-9


def test_columns_on_which_the_rows_say_nothing_stay() -> None:
    x = numbers(80)
    x[:, 2] = 4.0
    before = numbers(3, seed=2)
    weight, bias = affine(x, numbers(80, 3, seed=3), before)
    torch.testing.assert_close(weight[:, 2], before[:, 2].double(), rtol=1e-9, atol=1e-9)
    mean = (x.double() @ weight.t() + bias).mean(0)
    torch.testing.assert_close(mean, numbers(80, 3, seed=3).double().mean(0))


@pytest.mark.parametrize("rows", [0, 1])
def test_rows_that_do_not_vary_leave_the_map(rows: int) -> None:
    before, y = numbers(3, seed=2), numbers(rows, 3, seed=3)
    weight, bias = affine(numbers(rows), y, before)
    assert torch.equal(weight, before.double())
    if rows:
        torch.testing.assert_close(numbers(1).double() @ weight.t() + bias, y.double())


def test_of_what_is_noise_only_the_mean_is_taken() -> None:
    # As many columns as rows: a fit to all of them would say what it saw and nothing else.
    x, before = numbers(40, 40), torch.zeros(2, 40)
    y = numbers(40, 2, seed=5) + 3
    weight, bias = refitted(x, y, before)
    assert torch.equal(weight, before.double())
    torch.testing.assert_close(bias, y.double().mean(0) - before.double() @ x.double().mean(0))
    torch.testing.assert_close(bias, y.double().mean(0))


def test_what_rows_that_were_not_fitted_agree_with_is_taken() -> None:
    x = numbers(400)
    right = numbers(2, seed=2)
    weight, bias = refitted(x, x @ right.t() + 1, torch.zeros(2, 6))
    torch.testing.assert_close(weight, right.double(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(bias, torch.ones(2).double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_of_so_few_rows_only_the_mean_is_taken(rows: int) -> None:
    before = numbers(2, seed=2)
    weight, bias = refitted(numbers(rows), numbers(rows, 2, seed=3), before)
    assert torch.equal(weight, before.double()) and bool(bias.isfinite().all())


def test_products_are_taken_once_for_all_columns() -> None:
    x, y, before = numbers(60, 8) + 2, numbers(60, 3, seed=2), numbers(3, 8, seed=3)
    rows = Rows(x, y + x[:, :3])
    for columns in (torch.tensor([0, 3, 4, 7]), torch.arange(8)):
        found = rows.refitted(before[:, columns], columns)
        alone = refitted(x[:, columns], y + x[:, :3], before[:, columns])
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-9)


def test_rounding_of_columns_that_never_vary_is_no_variance() -> None:
    before = numbers(3, seed=2)
    weight, bias = refitted(torch.full((7, 6), 0.1), numbers(7, 3, seed=3), before)
    assert torch.equal(weight, before.double()) and bool(bias.isfinite().all())
