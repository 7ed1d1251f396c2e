"""Sums of looked-up rows run as bags, and give the sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastrec.backends.bags import as_bags, sum_of_rows
from fastrec.backends.split import split_lookups
from fastrec.graph import operator_name
from tests.techniques.fusion.rewrites import graph_of


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(50, 12)
        self.head = nn.Linear(24, 3)

    def forward(self, history: Tensor) -> Tensor:
        rows = torch.cat([self.items(history).sum(1), self.items(history).mean(dim=1)], 1)
        out: Tensor = self.head(rows) + self.items(history)[:, 0].sum(1, keepdim=True)
        return out


@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 5), (100, 8), (64, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
@pytest.mark.parametrize("mode", [0, 1])
def test_the_sum_is_that_of_the_rows(
    shape: tuple[int, int], dtype: torch.dtype, ids: torch.dtype, mode: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 7, generator=generator, dtype=dtype)
    picked = torch.randint(50, shape, generator=generator, dtype=ids)
    right = table[picked.long()].mean(1) if mode else table[picked.long()].sum(1)
    torch.testing.assert_close(sum_of_rows(table, picked, mode), right)


def test_a_graphs_sums_become_bags_and_its_other_sums_stay() -> None:
    batch = (torch.randint(50, (40, 6)),)
    graph = graph_of(Pooled(), *batch)
    made = as_bags(graph)
    assert sum(node.target is sum_of_rows for node in made.graph.nodes) == 2
    assert not any(node.target is sum_of_rows for node in graph.graph.nodes)
    assert as_bags(as_bags(graph)).code == made.code
    for rows in (1, 2, 33):
        with torch.no_grad():
            torch.testing.assert_close(made(batch[0][:rows]), graph(batch[0][:rows]))


def test_few_rows_are_rounded_as_many_where_that_is_wanted() -> None:
    rng = torch.Generator().manual_seed(0)
    table, ids = torch.randn(50, 12, generator=rng), torch.randint(50, (400, 50), generator=rng)
    whole = sum_of_rows(table, ids, 0, 1)
    assert all(torch.equal(sum_of_rows(table, ids[k : k + 1], 0, 1)[0], whole[k]) for k in range(400))
    batch = (torch.randint(50, (40, 6)),)
    told = [
        node.args[3]
        for node in as_bags(graph_of(Pooled(), *batch), alike=True).graph.nodes
        if node.target is sum_of_rows
    ]
    assert told == [1, 1]


def test_sums_of_rows_are_handed_over_in_place_of_the_rows() -> None:
    batch = (torch.randint(50, (40, 6)),)
    graph = graph_of(Pooled(), *batch)
    split = split_lookups(graph)
    handed = [tuple(tensor.shape) for tensor in split.lookups(*batch)]
    assert (40, 24) in handed
    assert not any(operator_name(node) == "mean" for node in split.dense.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(split.dense(*split.lookups(*batch)), graph(*batch))
