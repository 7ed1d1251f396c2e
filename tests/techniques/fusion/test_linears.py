"""Linears scaled, and side by side."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrec.techniques.fusion.linears import merge_linears

from .rewrites import count, rewritten

LINEAR = torch.ops.aten.linear.default


def test_times_a_number() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.a(x) * 0.25) + torch.relu(self.b(x + 1) / 3)

    graph, changes = rewritten(merge_linears, Scaled(), torch.randn(3, 4))
    assert len(changes) == 2 and count(graph, torch.ops.aten.mul.Tensor, torch.ops.aten.div.Tensor) == 0


def test_side_by_side() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(6, 4, bias=i > 0) for i in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.relu(expert(x)) for expert in self.experts], 1).sum(1)

    graph, changes = rewritten(merge_linears, Experts(), torch.randn(5, 6))
    assert len(changes) == 1 and count(graph, LINEAR) == 1


def test_heads_of_an_attention_stay() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) @ self.k(x).transpose(1, 2)

    assert rewritten(merge_linears, Heads(), torch.randn(5, 3, 6))[1] == []
