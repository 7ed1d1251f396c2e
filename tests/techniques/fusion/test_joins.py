"""Joins of request and candidate features, read in parts: selections, sums, linear maps, dot products."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fastrec.graph import operator_name, value
from fastrec.techniques.fusion.select_parts import select_parts
from fastrec.techniques.fusion.split_linears import split_linears
from fastrec.techniques.fusion.split_sums import split_sums

from .rewrites import count, rewritten_request

aten = torch.ops.aten


def ids(rows: int, fields: int) -> Tensor:
    return torch.randint(9, (rows, fields), generator=torch.Generator().manual_seed(fields))


def widths(graph: fx.GraphModule) -> list[tuple[str, int]]:
    """Rows and input width of every linear map."""
    nodes = [n for n in graph.graph.nodes if operator_name(n) == "linear"]
    return [(str(value(n.args[0]).shape[0]), int(value(n.args[0]).shape[-1])) for n in nodes]  # type: ignore[arg-type]


class Fields(nn.Module):
    """Fields of one packed matrix, joined in a given order."""

    def __init__(self, order: tuple[int, ...], kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.order, self.kind = order, kind
        self.tables = nn.ModuleList(nn.Embedding(9, 4) for _ in order)
        self.shared = nn.Embedding(9 * len(order), 4)
        self.head, self.pairs = nn.Linear(4 * len(order), 3), nn.Linear(len(order) * (len(order) - 1) // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.tables[i](x[:, i]) for i in self.order]
        if self.kind == "cat":
            return self.head(torch.cat(rows, 1))
        block = torch.stack(rows, 1)
        if self.kind == "offsets":
            block = self.shared(x + 9 * torch.arange(x.shape[1]))
        if self.kind == "fm":
            return 0.5 * (block.sum(1).pow(2) - block.pow(2).sum(1)).sum(1, keepdim=True)
        if self.kind == "mean":
            return torch.relu(block).mean(1)
        if self.kind == "dots":
            products = torch.bmm(block, block.transpose(1, 2))
            lower, left = torch.tril_indices(len(rows), len(rows), -1)
            return self.pairs(products[:, lower, left])
        return self.head(torch.flatten(block, 1))


KINDS = ["cat", "stack", "offsets", "fm", "mean", "dots"]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(2, 6), st.sampled_from(KINDS), st.randoms(use_true_random=False))
def test_any_order_and_colour_of_fields(fields: int, kind: str, rng: random.Random) -> None:
    order = tuple(rng.sample(range(fields), fields))
    mine = sorted(rng.sample(range(fields), rng.randint(1, fields - 1)))
    model = Fields(order, kind)
    rewritten_request([select_parts, split_sums, split_linears], model, {"x": mine}, ids(5, fields))


@pytest.mark.parametrize("kind", ["cat", "stack", "offsets"])
def test_the_candidates_columns_alone_are_multiplied_per_candidate(kind: str) -> None:
    graph, changes = rewritten_request([split_linears], Fields((2, 0, 3, 1), kind), {"x": [0, 3]}, ids(5, 4))
    assert len(changes) == 1
    rows, columns = zip(*widths(graph), strict=True)
    assert sorted(columns) == [8, 8] and "1" in rows


def test_the_requests_dot_products_are_made_once() -> None:
    graph, changes = rewritten_request(
        [split_linears], Fields((0, 1, 2, 3, 4), "dots"), {"x": [0, 1, 2]}, ids(5, 5)
    )
    assert len(changes) == 1
    assert sorted(widths(graph))[0] == ("1", 3) and sorted(width for _, width in widths(graph)) == [3, 7]


def test_sums_of_a_factorisation_machine() -> None:
    graph, changes = rewritten_request([split_sums], Fields((1, 0, 2), "fm"), {"x": [1]}, ids(5, 3))
    assert [change.rule for change in changes] == ["split sums"] * 2
    assert count(graph, aten.sum.dim_IntList) == 5


class Activation(nn.Module):
    """The unit of DIN on any subset and order of its four terms."""

    def __init__(self, terms: tuple[str, ...]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.terms = terms
        self.unit = nn.Sequential(nn.Linear(4 * len(terms), 6), nn.Sigmoid(), nn.Linear(6, 1))

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        k = history
        q = item.unsqueeze(1).expand(-1, k.shape[1], -1)
        parts = {"q": q, "k": k, "q-k": q - k, "k-q": k - q, "q*k": q * k}
        weights = self.unit(torch.cat([parts[name] for name in self.terms], -1))
        return (weights * k).sum(1)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["q", "k", "q-k", "k-q", "q*k"]), min_size=1, max_size=5))
def test_activation_units(terms: list[str]) -> None:
    rng = torch.Generator().manual_seed(3)
    item, history = torch.randn(5, 4, generator=rng), torch.randn(5, 7, 4, generator=rng)
    graph, _ = rewritten_request([split_linears], Activation(tuple(terms)), ["history"], item, history)
    full = [
        int(value(n.args[0]).shape[-1])  # type: ignore[arg-type]
        for n in graph.graph.nodes
        if operator_name(n) == "linear"
        and not isinstance(value(n.args[0]).shape[0], int)
        and value(n.args[0]).shape[1] == 7  # type: ignore[arg-type]
    ]
    # Of each pair of query and key only their product is multiplied, and the hidden layer.
    assert sum(full) <= 4 * terms.count("q*k") + 6
