"""What does nothing goes, what does something stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.techniques.fusion.no_ops import remove_no_ops

from .rewrites import rewritten


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.function(torch.relu(x)))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.dropout(x, 0.3, False),
        lambda x: x.clone(),
        lambda x: x * 1,
        lambda x: x + 0,
        lambda x: x - 0.0,
        lambda x: x / 1.0,
        lambda x: x.view(x.shape),
        lambda x: x.expand(-1, 4),
        lambda x: x[:, 0:],
        lambda x: torch.cat([x], 1),
        lambda x: x.transpose(0, 1).transpose(1, 0),
        lambda x: x.reshape(-1, 2, 2).reshape(-1, 4),
        lambda x: x.t().contiguous().t(),
    ],
)
def test_gone(function: Callable[[Tensor], Tensor]) -> None:
    assert rewritten(remove_no_ops, Apply(function), torch.randn(5, 4))[1]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2,
        lambda x: x + 1,
        lambda x: x.narrow(1, 0, 3),
        lambda x: x.flip(0),
        lambda x: x.transpose(0, 1) if x.shape[0] == x.shape[1] else x.sigmoid(),
        lambda x: torch.cat([x, x], 1),
        lambda x: x.double().float().floor(),
    ],
)
def test_kept(function: Callable[[Tensor], Tensor]) -> None:
    assert rewritten(remove_no_ops, Apply(function), torch.randn(5, 4))[1] == []


def test_an_output_never_becomes_an_input() -> None:
    class Copy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clone()

    graph, changes = rewritten(remove_no_ops, Copy(), torch.randn(5, 4))
    x = torch.randn(5, 4)
    assert changes == [] and graph(x)[0].data_ptr() != x.data_ptr()
