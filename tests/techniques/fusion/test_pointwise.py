"""Element-wise operators broadcast by themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrec.techniques.fusion.pointwise import drop_expands

from .rewrites import count, rewritten

aten = torch.ops.aten


class Units(nn.Module):
    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        queries = query.unsqueeze(1).expand(-1, keys.shape[1], -1)
        mask = (keys.sum(-1, keepdim=True) > 0).expand(-1, -1, keys.shape[2])
        return (queries * keys).masked_fill(mask, 0.0) - queries


class Alone(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(x.unsqueeze(1).expand(-1, 4, -1)) + y.sum()


def batch() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(3, 5, generator=rng), torch.randn(3, 4, 5, generator=rng)


def test_repeated_arguments_are_broadcast() -> None:
    graph, changes = rewritten(drop_expands, Units(), *batch())
    assert count(graph, aten.expand.default) == 0 and len(changes) == 3


def test_the_only_argument_that_gives_the_shape_stays_repeated() -> None:
    graph, changes = rewritten(drop_expands, Alone(), *batch())
    assert count(graph, aten.expand.default) == 1 and not changes
