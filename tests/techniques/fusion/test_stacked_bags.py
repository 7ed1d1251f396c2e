"""Bags over several tables become one bag, equal bit by bit."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, fx, nn

from fastrec.graph import is_call, sweep
from fastrec.techniques.fusion.stacked_bags import stack_bags

from .rewrites import graph_of

aten = torch.ops.aten
SIZES = (0, 1, 2, 3, 33)
BAG = (aten.embedding_bag.padding_idx, aten.embedding_bag.default)


class Bags(nn.Module):
    """A bag over each feature's ids (N, L_f)."""

    def __init__(self, rows: list[int], width: int, mode: str, padding: int | None = None) -> None:
        super().__init__()
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(count, width, mode=mode, padding_idx=padding) for count in rows
        )

    def forward(self, *ids: Tensor) -> Tensor:
        return torch.cat([bag(given) for bag, given in zip(self.bags, ids, strict=True)], 1)

    def batch(self, size: int, lengths: list[int]) -> tuple[Tensor, ...]:
        pairs = zip(self.bags, lengths, strict=True)
        return tuple(torch.randint(bag.num_embeddings, (size, length)) for bag, length in pairs)


def calls(graph: fx.GraphModule, *targets: object) -> int:
    return sum(is_call(node, *targets) for node in graph.graph.nodes)


def assert_one_bag(model: Bags, lengths: list[int]) -> None:
    graph = graph_of(model, *model.batch(3, lengths))
    (change,) = stack_bags(graph)
    sweep(graph)
    assert change.added_bytes == sum(parameter.nbytes for parameter in model.parameters())
    assert calls(graph, *BAG) == 1
    for original, (target, row, rows, column, columns) in graph.meta["moved"].items():
        table = model.get_parameter(original.removeprefix("model."))
        assert torch.equal(graph.get_buffer(target)[row : row + rows, column : column + columns], table)
    for size in SIZES:
        batch = model.batch(size, lengths)
        assert torch.equal(graph(*batch)[0], model(*batch))
    assert stack_bags(graph) == []


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 6)), min_size=3, max_size=6),
    st.integers(1, 16),
    st.sampled_from(["sum", "mean"]),
)
def test_bags_of_any_lengths_become_one(shapes: list[tuple[int, int]], width: int, mode: str) -> None:
    assert_one_bag(Bags([rows for rows, _ in shapes], width, mode), [length for _, length in shapes])


def test_bags_of_one_length_need_no_constant_starts() -> None:
    assert_one_bag(Bags([5, 6, 7], 4, "mean"), [3, 3, 3])


def test_zero_padding_rows_add_nothing_to_a_sum() -> None:
    assert_one_bag(Bags([5, 6, 7], 4, "sum", padding=0), [3, 2, 3])


def test_padding_changes_what_a_mean_divides_by() -> None:
    model = Bags([5, 6, 7], 4, "mean", padding=0)
    assert stack_bags(graph_of(model, *model.batch(3, [3, 3, 3]))) == []


def test_a_table_used_otherwise_stays() -> None:
    class Tied(Bags):
        def forward(self, *ids: Tensor) -> Tensor:
            out = super().forward(*ids)
            return torch.cat([out, out[:, :4] @ self.bags[0].weight.T], 1)

    model = Tied([5, 6, 7, 8], 4, "sum")
    graph = graph_of(model, *model.batch(3, [3, 3, 3, 3]))
    assert stack_bags(graph)
    sweep(graph)
    assert calls(graph, *BAG) == 2
    assert sorted(graph.meta["moved"]) == [f"model.bags.{place}.weight" for place in (1, 2, 3)]
    batch = model.batch(33, [3, 3, 3, 3])
    assert torch.allclose(graph(*batch)[0], model(*batch), atol=1e-6)


@pytest.mark.parametrize("mode", ["max", "sum"])
def test_max_and_two_bags_are_left_alone(mode: str) -> None:
    rows = [5, 6, 7] if mode == "max" else [5, 6]
    model = Bags(rows, 4, mode)
    graph = graph_of(model, *model.batch(3, [3] * len(rows)))
    before = str(graph.graph)
    assert stack_bags(graph) == []
    assert str(graph.graph) == before
