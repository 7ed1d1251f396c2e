"""Equal calls and equal tables are one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrec.techniques.fusion.common_subexpressions import merge_common

from .rewrites import count, rewritten

aten = torch.ops.aten


def test_equal_calls() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.sum(1)) * torch.relu(x.sum(1)) + x.sum(0).sum() * 0

    graph, changes = rewritten(merge_common, Twice(), torch.randn(5, 4), rows=(5,))
    assert (
        len(changes) == 2 and count(graph, aten.relu.default) == 1 and count(graph, aten.sum.dim_IntList) == 2
    )


def test_numbers_of_different_types_are_different() -> None:
    class Near(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([(x + 1).float(), (x + 1.0).float(), (x + True).float()], 1)

    assert rewritten(merge_common, Near(), torch.arange(20).reshape(5, 4))[1] == []


def test_equal_tables() -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Embedding(9, 4) for _ in range(3))
            self.b.weight = nn.Parameter(self.a.weight.detach().clone())

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x[:, 0]) + self.b(x[:, 1]) * 2 + self.c(x[:, 2])

    graph, changes = rewritten(merge_common, Tables(), torch.randint(9, (5, 3)))
    assert [change.site for change in changes] == ["model.b.weight"]
    assert graph.meta["moved"] == {"model.b.weight": ("model.a.weight", 0, 9, 0, 4)}
