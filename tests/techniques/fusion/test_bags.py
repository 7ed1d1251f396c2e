"""Bags of one id become lookups; all other bags stay."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, fx, nn

from fastrec.graph import is_call, sweep
from fastrec.techniques.fusion.bags import simplify_bags
from fastrec.techniques.fusion.stacked_lookups import stack_lookups

from .rewrites import graph_of

aten = torch.ops.aten
SIZES = (0, 1, 2, 3, 33)


class Bag(nn.Module):
    """One bag, called as `call` says."""

    def __init__(self, bag: nn.EmbeddingBag, call: Callable[[nn.EmbeddingBag, Tensor], Tensor]) -> None:
        super().__init__()
        self.bag, self.call = bag, call

    def forward(self, ids: Tensor) -> Tensor:
        return self.call(self.bag, ids)


def calls(graph: fx.GraphModule, *targets: object) -> int:
    return sum(is_call(node, *targets) for node in graph.graph.nodes)


def matrix(bag: nn.EmbeddingBag, ids: Tensor) -> Tensor:
    """(N, 1): one id a row."""
    found: Tensor = bag(ids[:, :1])
    return found


def counted(bag: nn.EmbeddingBag, ids: Tensor) -> Tensor:
    """(N,) with offsets 0, 1, 2, ..."""
    count = ids.shape[0] + int(bag.include_last_offset)
    found: Tensor = bag(ids[:, 0], torch.arange(count))
    return found


def several(bag: nn.EmbeddingBag, ids: Tensor) -> Tensor:
    """(N, 3): three ids a row."""
    found: Tensor = bag(ids)
    return found


def halves(bag: nn.EmbeddingBag, ids: Tensor) -> Tensor:
    """(2N,) with offsets 0, 2, 4, ..."""
    found: Tensor = bag(ids[:, :2].reshape(-1), torch.arange(0, 2 * ids.shape[0], 2))
    return found


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("call", [matrix, counted])
def test_a_bag_of_one_id_is_a_lookup(mode: str, call: Callable[[nn.EmbeddingBag, Tensor], Tensor]) -> None:
    model = Bag(nn.EmbeddingBag(9, 4, mode=mode), call)
    graph = graph_of(model, torch.randint(9, (3, 3)))
    (change,) = simplify_bags(graph)
    sweep(graph)
    assert (change.rule, change.added_bytes) == ("simplify bags", 0)
    assert calls(graph, aten.embedding.default) == 1
    assert calls(graph, aten.embedding_bag.default, aten.embedding_bag.padding_idx) == 0
    for size in SIZES:
        ids = torch.randint(9, (size, 3))
        assert torch.equal(graph(ids)[0], model(ids))


def test_the_last_offset_may_be_given() -> None:
    model = Bag(nn.EmbeddingBag(9, 4, mode="sum", include_last_offset=True), counted)
    graph = graph_of(model, torch.randint(9, (3, 3)))
    assert simplify_bags(graph)
    sweep(graph)
    ids = torch.randint(9, (33, 3))
    assert torch.equal(graph(ids)[0], model(ids))


def test_a_padding_row_of_zeros_is_its_own_empty_bag() -> None:
    bag = nn.EmbeddingBag(9, 4, mode="sum", padding_idx=0)
    assert not bag.weight[0].any()
    model = Bag(bag, matrix)
    graph = graph_of(model, torch.randint(9, (3, 3)))
    assert simplify_bags(graph)
    sweep(graph)
    ids = torch.arange(9)[:, None].repeat(1, 3)
    assert torch.equal(graph(ids)[0], model(ids))


def test_a_padding_row_that_is_not_zero_stays_a_bag() -> None:
    bag = nn.EmbeddingBag.from_pretrained(torch.ones(9, 4), mode="sum", padding_idx=0)
    graph = graph_of(Bag(bag, matrix), torch.randint(9, (3, 3)))
    assert simplify_bags(graph) == []


@pytest.mark.parametrize("call", [several, halves])
def test_bags_of_several_ids_stay(call: Callable[[nn.EmbeddingBag, Tensor], Tensor]) -> None:
    graph = graph_of(Bag(nn.EmbeddingBag(9, 4, mode="sum"), call), torch.randint(9, (3, 3)))
    before = str(graph.graph)
    assert simplify_bags(graph) == []
    assert str(graph.graph) == before


def test_weighted_bags_stay() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(9, 4, mode="sum")

        def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
            found: Tensor = self.bag(ids, per_sample_weights=weights)
            return found

    graph = graph_of(Weighted(), torch.randint(9, (3, 1)), torch.rand(3, 1))
    assert simplify_bags(graph) == []


class Fields(nn.Module):
    """One bag a field, one id each."""

    def __init__(self, rows: list[int], width: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(count, width, mode="sum") for count in rows)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([bag(ids[:, field].unsqueeze(1)) for field, bag in enumerate(self.bags)], 1)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=3, max_size=8), st.integers(1, 16))
def test_fields_of_one_id_bags_become_one_gather(rows: list[int], width: int) -> None:
    model = Fields(rows, width)
    graph = graph_of(model, torch.randint(min(rows), (3, len(rows))))
    assert len(simplify_bags(graph)) == len(rows)
    assert stack_lookups(graph)
    sweep(graph)
    assert calls(graph, aten.embedding.default) == 1
    assert calls(graph, aten.embedding_bag.padding_idx, aten.arange.start_step) == 0
    for size in SIZES:
        ids = torch.randint(min(rows), (size, len(rows)))
        assert torch.equal(graph(ids)[0], model(ids))
