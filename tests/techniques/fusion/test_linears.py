"""Linears in a row, scaled, and side by side."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from fastrec.techniques.fusion.linears import merge_linears

from .rewrites import count, rewritten

LINEAR = torch.ops.aten.linear.default


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.booleans(), st.booleans())
def test_in_a_row_where_it_saves(a: int, b: int, c: int, first: bool, second: bool) -> None:
    model = nn.Sequential(nn.Linear(a, b, bias=first), nn.Linear(b, c, bias=second))
    graph, _ = rewritten(merge_linears, model, torch.randn(5, a))
    assert count(graph, LINEAR) == (1 if a * c <= a * b + b * c else 2)


def test_a_bottleneck_stays() -> None:
    _, changes = rewritten(
        merge_linears, nn.Sequential(nn.Linear(64, 2), nn.Linear(2, 64)), torch.randn(3, 64)
    )
    assert changes == []


def test_what_others_read_stays() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x)
            return y + 1, self.b(y)

    assert rewritten(merge_linears, Both(), torch.randn(3, 4))[1] == []


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
