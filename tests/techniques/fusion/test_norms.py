"""Normalisations fold backward, forward, or become a scale and a shift."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from fastrec.techniques.fusion.norms import fold_norms

from .rewrites import count, rewritten

aten = torch.ops.aten
NORM = (aten.batch_norm.default,)


def used(model: nn.Module) -> nn.Module:
    """As after training: statistics and weights that do something."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 3.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.booleans(), st.booleans())
def test_backward_into_a_linear(inside: int, outside: int, bias: bool, affine: bool, more: bool) -> None:
    model = used(nn.Sequential(nn.Linear(inside, outside, bias=bias), nn.BatchNorm1d(outside, affine=affine)))
    if more:
        model.append(nn.ReLU()).append(nn.Linear(outside, 2))
    graph, changes = rewritten(fold_norms, model, torch.randn(5, inside))
    assert len(changes) == 1 and count(graph, *NORM, aten.mul.Tensor) == 0


def test_backward_into_a_convolution() -> None:
    model = used(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    graph, changes = rewritten(fold_norms, model, torch.randn(4, 3, 6, 6))
    assert len(changes) == 1 and count(graph, *NORM, aten.mul.Tensor) == 0


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": "same"},
        {"padding": "valid", "stride": 2, "bias": False},
        {"padding": 1, "groups": 2},
        {"padding": "same", "dilation": 2, "groups": 4, "bias": False},
        {"padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_backward_into_a_convolution_of_any_settings(dims: int, settings: dict[str, Any]) -> None:
    convolution, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[dims - 1]
    model = used(nn.Sequential(convolution(4, 8, 3, **settings), norm(8), nn.ReLU()))
    graph, changes = rewritten(fold_norms, model, torch.randn(4, 4, *(7, 6)[:dims]))
    assert len(changes) == 1 and count(graph, *NORM, aten.mul.Tensor) == 0


def test_forward_into_every_reader() -> None:
    class Forward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Linear(4, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(torch.relu(x))
            return torch.cat([self.a(x), self.b(x)], 1)

    graph, changes = rewritten(fold_norms, used(Forward()), torch.randn(5, 4))
    assert len(changes) == 1 and count(graph, *NORM, aten.mul.Tensor) == 0


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_elsewhere_a_scale_and_a_shift(shape: tuple[int, ...]) -> None:
    model = used(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Sigmoid()))
    graph, changes = rewritten(fold_norms, model, torch.randn(5, *shape))
    assert len(changes) == 1 and count(graph, *NORM) == 0 and count(graph, aten.mul.Tensor) == 1


def test_a_linear_that_others_read_keeps_its_weights() -> None:
    class Dice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.linear(x)
            return x * torch.sigmoid(self.norm(x))

    graph, changes = rewritten(fold_norms, used(Dice()), torch.randn(5, 4))
    assert len(changes) == 1 and count(graph, *NORM) == 0
