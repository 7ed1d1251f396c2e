"""Ranges of activations and codes of weights."""

from __future__ import annotations

import math

import pytest
import torch

from fastrec.ops import int8_linear
from fastrec.ops.linears import centred
from fastrec.techniques.quantization.ranges import (
    BIAS,
    best_output,
    best_range,
    code_bias,
    code_weight,
    least_scale,
    row_error,
)


def off(x: torch.Tensor, weight: torch.Tensor, scale: float, zero: int) -> float:
    right = x.double() @ weight.double().t()
    return by_row(int8_linear(x, *code_weight(weight), scale, zero), right)


def by_row(got: torch.Tensor, right: torch.Tensor) -> float:
    """The root mean square of what rows are off, each by its own size, those under the median by that."""
    sizes = right.double().norm(dim=1)
    least = sizes[sizes > 0].median()
    each = [
        float((a - b).norm() / max(b.norm(), least))
        for a, b in zip(got.double(), right.double(), strict=True)
    ]
    return math.sqrt(sum(e * e for e in each) / len(each))


def test_a_weight_comes_back_within_half_a_step() -> None:
    weight = torch.randn(20, 30) * torch.logspace(-6, 6, 20)[:, None]
    codes, scale = code_weight(weight)
    assert codes.dtype == torch.int8 and int(codes.abs().max()) == 127
    assert ((codes * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()


@pytest.mark.parametrize("weight", [torch.zeros(2, 3), torch.full((2, 3), 1e-44)])
def test_rows_of_nothing_are_codes_of_nothing(weight: torch.Tensor) -> None:
    codes, scale = code_weight(weight)
    assert not codes.any() and bool((scale == 1).all())


def test_activations_that_are_never_negative_have_zero_at_code_zero() -> None:
    x = torch.relu(torch.randn(500, 20))
    made = best_range(x, torch.randn(8, 20))
    assert made is not None and made.zero == 0
    # All codes are for them: twice as fine as a range around zero.
    assert made.scale <= float(x.max()) / 255 * 1.0001


def test_the_error_is_that_of_the_layer_and_no_rule_alone_is_better() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2000, 16) ** 3, torch.randn(8, 16)
    made = best_range(x, weight)
    assert made is not None
    assert made.error == pytest.approx(off(x, weight, made.scale, made.zero), rel=1e-3)
    low, high = float(x.min()), float(x.max())
    scale = (high - low) / 255
    assert made.error <= off(x, weight, scale, round(-low / scale)) * 1.001


def test_a_few_values_far_out_do_not_make_all_others_coarse() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2000, 256), torch.randn(8, 256)
    x[0, 0] = 12.0
    made = best_range(x, weight)
    assert made is not None and made.rule != "min-max"
    low, high = float(x.min()), float(x.max())
    assert made.error < 0.9 * off(x, weight, (high - low) / 255, round(-255 * low / (high - low)))


def test_constants_have_a_range_and_zeros_have_none() -> None:
    weight = torch.randn(3, 5)
    assert best_range(torch.zeros(9, 5), weight) is None
    assert best_range(torch.full((9, 5), 1e-42), weight) is None
    for constant in (7.0, -7.0):
        made = best_range(torch.full((9, 5), constant), weight)
        assert made is not None and made.error < 0.02


def test_a_weight_of_zeros_is_exact() -> None:
    made = best_range(torch.randn(9, 5), torch.zeros(3, 5))
    assert made is not None and made.error == 0.0


def test_groups_are_layers_beside_one_another() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(500, 12), torch.randn(6, 4)
    whole = torch.zeros(6, 12)
    for part in range(3):
        whole[2 * part : 2 * part + 2, 4 * part : 4 * part + 4] = weight[2 * part : 2 * part + 2]
    one, other = best_range(x, weight, 3), best_range(x, whole)
    assert one is not None and other is not None
    assert (one.scale, one.zero, one.rule) == (other.scale, other.zero, other.rule)
    assert one.error == pytest.approx(other.error, rel=1e-4)


def test_results_are_rounded_where_they_lie() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2000, 16), torch.randn(8, 16), torch.randn(8)
    given = best_range(x, weight)
    assert given is not None
    free = best_output(x, weight, 1, bias, given, (-math.inf, math.inf))
    cut = best_output(x, weight, 1, bias, given, (0.0, math.inf))
    assert free is not None and cut is not None and cut.zero == 0 and cut.scale < 0.75 * free.scale
    right = torch.relu(x @ weight.t() + bias)
    codes, scale = code_weight(weight)
    got = torch.relu(int8_linear(x, codes, scale, given.scale, given.zero, bias))
    got = centred(got, cut.scale, cut.zero) * cut.scale
    assert cut.error == pytest.approx(by_row(got, right), rel=1e-4)
    assert given.error < cut.error < 0.02
    assert best_output(x, 0 * weight, 1, 0 * bias, given, (0.0, math.inf)) is None


def test_a_bias_beside_weights_of_next_to_nothing_keeps_its_digits() -> None:
    weight = torch.randn(4, 9) * torch.tensor([1.0, 1e-12, 0.0, 0.0])[:, None]
    bias, step = torch.tensor([0.3, 2.0, -0.7, 0.0]), 0.02
    codes, scale = code_weight(weight, least_scale(bias, step))
    whole = code_bias(bias, scale, step)
    assert whole.dtype == torch.int32 and int(whole.abs().max()) <= BIAS
    torch.testing.assert_close(
        whole.double() * scale.double() * step, bias.double(), rtol=1e-6, atol=0.5 * step * float(scale[0])
    )
    assert codes[0].abs().max() == 127 and not codes[1:].any()
    assert float(whole[2]) * float(scale[2]) * step == pytest.approx(-0.7, rel=1e-6)


def test_one_row_of_another_size_is_one_row() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2000, 32), torch.randn(16, 32)
    plain = best_range(x, weight)
    x[7] *= 1e4
    made = best_range(x, weight)
    assert plain is not None and made is not None
    # That row is cut off, for the others' sake.
    assert made.scale < 2 * plain.scale
    assert made.error < 0.1


def test_rows_are_off_by_their_own_size() -> None:
    right = torch.tensor([[3.0, 4.0], [300.0, 400.0], [0.0, 0.0]])
    assert row_error(right, right) == 0.0
    assert row_error(right * 1.1, right) == pytest.approx(0.1 * (2 / 3) ** 0.5)
    assert row_error(torch.ones(2, 2), torch.zeros(2, 2)) == math.inf
    assert row_error(torch.zeros(2, 2), torch.zeros(2, 2)) == 0.0
