"""Sums of columns of the same rows are columns of one sum."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.graph import copy_graph, sweep
from fastrec.techniques.fusion.no_ops import remove_no_ops
from fastrec.techniques.fusion.sliced_sums import sum_once

from .rewrites import count, graph_of

aten = torch.ops.aten


class Columns(nn.Module):
    def __init__(self, score: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.score(x)


def plain(model: nn.Module, x: Tensor) -> fx.GraphModule:
    """The graph without the slices of everything that stand between."""
    graph = graph_of(model, x)
    remove_no_ops(graph)
    sweep(graph)
    return graph


SUMS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "an embedding and a weight": lambda x: (x[:, :, :8].sum(1), x[:, :, 8:9].squeeze(2).sum(1, keepdim=True)),
    "the weight without its dimension": lambda x: (x[:, :, :8].sum(1), x[:, :, 9:10].squeeze(2).sum(1)),
    "kept": lambda x: (x[:, :, :4].sum(1, keepdim=True), x[:, :, 4:].sum(1)),
    "overlapping": lambda x: (x[:, :, :6].sum(1), x[:, :, 3:].sum(1)),
    "means": lambda x: (x[:, :, :6].mean(1), x[:, :, 6:].mean(1)),
}


@pytest.mark.parametrize("name", SUMS)
def test_one_sum_is_left(name: str) -> None:
    x = torch.randn(9, 5, 10)
    before = plain(Columns(SUMS[name]), x)
    after = copy_graph(before)
    (change,) = sum_once(after)
    sweep(after)
    assert change.rule == "sum once" and change.added_bytes == 0
    assert count(after, aten.sum.dim_IntList, aten.mean.dim) == 1
    for rows in (1, 2, 9):
        for new, old in zip(after(x[:rows]), before(x[:rows]), strict=True):
            torch.testing.assert_close(new, old)


@pytest.mark.parametrize(
    "score",
    [
        lambda x: (x[:, :, :8].sum(1), x[:, :, 8:].mean(1)),
        lambda x: (x[:, :, :8].sum(1),),
        lambda x: (x[:, :, :2].sum(1), x[:, :, 2:4].sum(1)),
        lambda x: (x[:, :, :8].sum(2), x[:, :, 2:].sum(2)),
        lambda x: (x[:, :, 0:8:2].sum(1), x[:, :, 1:9:2].sum(1)),
        lambda x: (x[:, :4].sum(1), x[:, 1:].sum(1)),
    ],
    ids=["sum and mean", "alone", "few columns", "across", "every other", "of positions"],
)
def test_others_stay(score: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
    graph = plain(Columns(score), torch.randn(9, 5, 10))
    code = str(graph.graph)
    assert not sum_once(graph)
    assert str(graph.graph) == code
