"""The module computes as the operator does, and stands for the linear map it was turned from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fastrec.ops import int8_linear, layers
from fastrec.ops.layers import Int8Linear

from .test_linears import made


def turned(bias: bool = True) -> tuple[nn.Linear, tuple[Tensor, Tensor]]:
    weight, scale, _ = made(6, 4)
    linear = nn.Linear(6, 4, bias=bias)
    Int8Linear.turn(linear, weight, scale, 0.02, 100)
    return linear, (weight, scale)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shape", [(6,), (0, 6), (1, 6), (5, 6), (2, 0, 6), (2, 3, 6)])
def test_it_computes_as_the_operator(bias: bool, packed: bool, shape: tuple[int, ...]) -> None:
    linear, held = turned(bias)
    assert isinstance(linear, Int8Linear)
    if packed and not linear.pack():
        pytest.skip("no packed kernel here")
    x = torch.randn(shape)
    y, right = linear(x), int8_linear(x, *held, 0.02, 100, linear.bias)
    assert y.shape == right.shape
    torch.testing.assert_close(y, right, rtol=1e-6, atol=1e-6)


def test_it_is_the_same_module_without_its_float_weight() -> None:
    linear = nn.Linear(6, 4)
    holder = [linear, linear]
    weight, bias = linear.weight, linear.bias
    kept = weight.detach().clone(), bias.detach().clone()
    codes, scale, _ = made(6, 4)
    Int8Linear.turn(linear, codes, scale, 0.02, 100)
    assert (
        holder[0] is linear
        and isinstance(linear, nn.Linear)
        and (linear.in_features, linear.out_features) == (6, 4)
    )
    assert all(tensor is not weight for tensor in linear.parameters())
    assert [tensor.dtype for tensor in linear.buffers()] == [torch.int8, torch.float32]
    # Its tensors are left to whoever shares them.
    assert torch.equal(weight, kept[0]) and torch.equal(bias, kept[1]) and bias.requires_grad
    assert linear.bias.data_ptr() == bias.data_ptr() and not linear.bias.requires_grad
    assert torch.equal(linear.weight, codes * scale[:, None])
    twin = copy.deepcopy(linear)
    x = torch.randn(3, 6)
    assert torch.equal(twin(x), linear(x))
    assert str(linear) == "Int8Linear(in_features=6, out_features=4, bias=True)"


@pytest.mark.parametrize(
    "x", [torch.randn(3, 5), torch.randn(3, 7), torch.randn(3, 6).double(), torch.arange(6)]
)
@pytest.mark.parametrize("packed", [True, False])
def test_what_it_was_not_made_for_is_refused_as_it_was(x: Tensor, packed: bool) -> None:
    linear, _ = turned()
    assert isinstance(linear, Int8Linear)
    if packed:
        linear.pack()
    with pytest.raises(RuntimeError) as before:
        nn.Linear(6, 4)(x)
    with pytest.raises(RuntimeError) as after:
        linear(x)
    assert str(after.value) == str(before.value)


def test_inputs_that_ask_for_gradients() -> None:
    linear, _ = turned()
    assert isinstance(linear, Int8Linear)
    x = torch.randn(3, 6)
    for _ in range(2):
        assert torch.equal(linear(x.clone().requires_grad_()), linear(x))
        linear.pack()


def test_where_the_kernel_is_wrong_the_operator_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, held = turned()
    assert isinstance(linear, Int8Linear)
    monkeypatch.setattr(layers, "pack", lambda *_: "saturates")
    assert linear.pack() == 0 and linear.packed is None
    x = torch.randn(3, 6)
    assert torch.equal(linear(x), int8_linear(x, *held, 0.02, 100, linear.bias))
