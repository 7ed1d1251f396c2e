"""Products with constant matrices are linear maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrec.techniques.fusion.matmuls import name_linears

from .rewrites import count, rewritten

aten = torch.ops.aten


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v, self.b = (nn.Parameter(torch.randn(*shape)) for shape in ((5, 3), (5,), (3,)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        deep = x.unsqueeze(1) * x.unsqueeze(2)
        return x @ self.w, deep @ self.w, x @ self.v, torch.addmm(self.b, x, self.w), x.mm(self.w)


class Others(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.addmm(self.b, x, self.w, alpha=2), x @ x.t() @ x, self.w.t() @ x[0]


def test_each_way_to_write_it() -> None:
    graph, changes = rewritten(name_linears, Products(), torch.randn(4, 5))
    assert len(changes) == 5 and count(graph, aten.linear.default) == 5


def test_products_of_other_things_stay() -> None:
    _, changes = rewritten(name_linears, Others(), torch.randn(4, 5), rows=(4,))
    assert not changes
