"""Squares are products, and the only element along a dimension is a view."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrec.techniques.fusion.plain_calls import call_plainly

from .rewrites import count, rewritten

aten = torch.ops.aten


class Plain(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.pow(2), (x**2.0).sum(1), x[:, 3:4].select(1, 0), x[:, 3:4][:, -1], x.unsqueeze(0)[0]


class Others(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        return x.pow(3), x.abs().pow(0.5), x[:, 1], ids.float() + ids.pow(2.0) * 1.0, 2**x, x[0]


def test_squares_and_only_elements() -> None:
    graph, changes = rewritten(call_plainly, Plain(), torch.randn(4, 5))
    assert len(changes) == 5
    assert count(graph, aten.pow.Tensor_Scalar) == count(graph, aten.select.int) == 0


def test_the_bits_are_the_same() -> None:
    x = torch.randn(1000) * torch.logspace(-20, 18, 1000)
    assert torch.equal(x**2, x * x)


def test_other_powers_and_other_indices_stay() -> None:
    _graph, changes = rewritten(call_plainly, Others(), torch.randn(4, 5), torch.arange(4), rows=(4,))
    assert not changes, changes
