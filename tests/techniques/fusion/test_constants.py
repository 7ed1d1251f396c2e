"""What depends on no input is computed once, within reason."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrec.techniques.fusion.constants import fold_constants

from .rewrites import count, rewritten

aten = torch.ops.aten


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(8, 4)
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1])
        mask = torch.triu(torch.ones(len(steps), len(steps), dtype=x.dtype), 1) * -1.0
        return (
            (x + self.positions(steps)).transpose(1, 2)
            @ mask
            @ torch.softmax(mask, -1)
            * self.weight.exp().sum()
        )


def test_folded() -> None:
    graph, changes = rewritten(fold_constants, Positions(), torch.randn(5, 8, 4))
    assert (
        changes
        and count(graph, aten.arange.default, aten.triu.default, aten.embedding.default, aten.exp.default)
        == 0
    )


def test_what_depends_on_the_rows_stays() -> None:
    class Rows(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ones(x.shape[0], 1)

    assert rewritten(fold_constants, Rows(), torch.randn(5, 4))[1] == []


def test_memory_is_not_multiplied() -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.randn(1, 1000))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.row.expand(1000, 1000) * 2.0).relu()

    graph, _ = rewritten(fold_constants, Large(), torch.randn(5, 1000) / 100)
    assert count(graph, aten.relu.default) == 1
