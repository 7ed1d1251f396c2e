"""Linear maps of looked-up rows become lookups of mapped rows."""

from __future__ import annotations

from functools import partial, update_wrapper
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fastrec.capture import capture
from fastrec.errors import InputError
from fastrec.graph import constant
from fastrec.program import Program
from fastrec.recipe import Recipe
from fastrec.techniques import Fuse
from fastrec.techniques.base import Change
from fastrec.techniques.fusion import Rule, folded_lookups
from fastrec.techniques.fusion.folded_lookups import fold_lookups
from tests.techniques.fusion.rewrites import count, graph_of, rewritten

aten = torch.ops.aten
LOOKUP, LINEAR, SUM = aten.embedding.default, aten.linear.default, aten.sum.dim_IntList


class Fields(nn.Module):
    """`ids` (N, F) looked up field by field, joined, and mapped; dense (N, D) beside them."""

    def __init__(
        self, rows: tuple[int, ...], width: int, height: int, dense: int = 0, how: str = "cat"
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(n, width) for n in rows])
        self.first = nn.Linear(len(rows) * width + dense, height)
        self.how = how

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        if self.how == "wide":  # ids (N, 1) give (N, 1, d)
            rows = torch.cat([t(ids[:, k : k + 1]) for k, t in enumerate(self.tables)], 1).flatten(1)
        else:
            found = [t(ids[:, k]) for k, t in enumerate(self.tables)]
            rows = torch.stack(found, 1).flatten(1) if self.how == "stack" else torch.cat(found, 1)
        return F.relu(self.first(torch.cat([rows, dense], 1)))


def ids_for(rows: tuple[int, ...], n: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randint(k, (n,), generator=generator) for k in rows], 1)


def limited(limit: int) -> Rule:
    return update_wrapper(partial(fold_lookups, limit=limit), fold_lookups)


@pytest.mark.parametrize("how", ["cat", "stack", "wide"])
def test_all_fields_are_one_gather_and_one_sum(how: str) -> None:
    rows = (7, 30, 2, 100)
    graph, changes = rewritten(fold_lookups, Fields(rows, 64, 256, how=how), ids_for(rows), torch.rand(40, 0))
    assert count(graph, LOOKUP) == 1 and count(graph, SUM) == 1
    assert changes[0].rule == "fold lookups"


def test_without_a_rest_no_linear_map_remains_and_the_bias_is_in_the_table() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Embedding(9, 96), nn.Embedding(5, 96)
            self.first = nn.Linear(192, 384)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return F.relu(self.first(torch.cat([self.left(left), self.right(right)], 1)))

    ids = ids_for((9, 5))
    graph, changes = rewritten(fold_lookups, Alone(), ids[:, 0], ids[:, 1])
    assert count(graph, LOOKUP) == 1 and count(graph, LINEAR, aten.add.Tensor) == 1  # the rows' offsets
    assert changes[0].added_bytes == (9 + 5) * 384 * 4


def test_large_tables_stay_and_small_ones_fold_where_that_is_much_of_the_map() -> None:
    rows = (*(20,) * 20, 200_000)
    graph, changes = rewritten(fold_lookups, Fields(rows, 16, 512, 3), ids_for(rows), torch.rand(40, 3))
    assert "20 of 22 parts" in changes[0].detail
    assert changes[0].added_bytes == (20 * 20 * 512 + 512 * (16 + 3)) * 4
    assert count(graph, LINEAR) == 1 and count(graph, LOOKUP) == 2


@pytest.mark.parametrize(
    ("rows", "dense"),
    [((50, 50), 13), ((200_000,) * 8, 0)],
    ids=["two of many parts cost more calls than they save", "rows of large tables cost more than products"],
)
def test_what_would_not_pay_is_left_alone(rows: tuple[int, ...], dense: int) -> None:
    _, changes = rewritten(fold_lookups, Fields(rows, 16, 128, dense), ids_for(rows), torch.rand(40, dense))
    assert not changes


def test_the_memory_limit_holds_over_all_maps_and_all_calls() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(100, 64) for _ in range(6)])
            self.first, self.second = nn.Linear(3 * 64, 384), nn.Linear(3 * 64, 384)

        def forward(self, ids: Tensor) -> Tensor:
            found = [t(ids[:, k]) for k, t in enumerate(self.tables)]
            return F.relu(self.first(torch.cat(found[:3], 1))) + F.relu(self.second(torch.cat(found[3:], 1)))

    each = 300 * 384 * 4
    ids = ids_for((100,) * 6)
    _, both = rewritten(fold_lookups, Two(), ids)
    assert [change.added_bytes for change in both] == [each, each]
    _, one = rewritten(limited(2 * each - 1), Two(), ids)
    assert sum(change.added_bytes for change in one) < 2 * each and len(one) >= 1
    _, none = rewritten(limited(0), Two(), ids)
    assert not none
    graph = graph_of(Two(), ids)
    assert [c.added_bytes for c in fold_lookups(graph, each)] == [each]
    assert not fold_lookups(graph, each)


def test_one_table_read_by_two_fields_and_by_the_output_keeps_serving_all() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(60, 256, padding_idx=0)
            self.first = nn.Linear(512, 256)

        def forward(self, last: Tensor, before: Tensor) -> Tensor:
            state = torch.tanh(self.first(torch.cat([self.items(last), self.items(before)], 1)))
            return torch.matmul(state, self.items.weight.t())

    ids = ids_for((60, 60))
    graph, changes = rewritten(fold_lookups, Tied(), ids[:, 0], ids[:, 1])
    assert changes and count(graph, LOOKUP) == 1
    tables = [t for n in graph.graph.nodes if (t := constant(graph, n)) is not None and t.ndim == 2]
    assert sorted(len(t) for t in tables) == [60, 120]


def test_ids_of_one_stacked_table_fold_column_by_column() -> None:
    class Stacked(nn.Module):
        offsets: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("offsets", torch.tensor([0, 10, 14]))
            self.table = nn.Embedding(40, 64)
            self.first = nn.Linear(192, 384)

        def forward(self, ids: Tensor) -> Tensor:
            return F.relu(self.first(self.table(ids + self.offsets).flatten(1)))

    graph, changes = rewritten(fold_lookups, Stacked(), ids_for((10, 4, 26)))
    assert changes and count(graph, LINEAR) == 0
    assert changes[0].added_bytes == 3 * 40 * 384 * 4


@pytest.mark.parametrize("pool", ["sum", "mean", "none", "scaled", "bag_sum", "bag_mean"])
def test_histories_fold_through_what_treats_all_columns_alike(pool: str) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.Embedding(50, 96, padding_idx=0)
            self.bag = nn.EmbeddingBag(
                50, 96, mode=pool.removeprefix("bag_") if "bag" in pool else "sum", padding_idx=0
            )
            self.first = nn.Linear(96, 32)

        def forward(self, history: Tensor) -> Tensor:
            if "bag" in pool:
                return F.relu(self.first(self.bag(history)))
            rows = self.items(history)
            rows = {"sum": rows.sum(1), "mean": rows.mean(1), "none": rows, "scaled": rows * 0.5}[pool]
            return F.relu(self.first(rows))

    graph, changes = rewritten(fold_lookups, Pooled(), ids_for((50,) * 5))
    assert changes and count(graph, LINEAR) == 0
    assert changes[0].added_bytes == 50 * 32 * 4


def test_rows_that_are_read_elsewhere_are_still_looked_up() -> None:
    class Machine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(20, 64) for _ in range(8)])
            self.first = nn.Linear(512, 512)

        def forward(self, ids: Tensor) -> Tensor:
            rows = torch.stack([t(ids[:, k]) for k, t in enumerate(self.tables)], 1)
            return F.relu(self.first(rows.flatten(1))).sum(1) + rows.sum(1).pow(2).sum(1)

    graph, changes = rewritten(fold_lookups, Machine(), ids_for((20,) * 8))
    assert changes and count(graph, LOOKUP) == 9


def test_other_bags_and_weights_that_are_no_constants_do_not_fold() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.largest = nn.EmbeddingBag(50, 96, mode="max")
            self.items = nn.Embedding(50, 96)
            self.first = nn.Linear(96, 32)

        def forward(self, history: Tensor, weight: Tensor) -> Tensor:
            everything = self.items(history[:, 0]).sum(1, keepdim=True)
            mine = F.linear(self.items(history[:, 1]), weight[:1])
            return torch.add(self.first(self.largest(history)), mine + everything)

    _, changes = rewritten(fold_lookups, Other(), ids_for((50,) * 5), torch.rand(40, 96), rows=(2, 33))
    assert not changes


@given(
    rows=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    width=st.sampled_from([4, 64, 96]),
    height=st.sampled_from([1, 96, 512]),
    dense=st.sampled_from([0, 3]),
    how=st.sampled_from(["cat", "stack", "wide"]),
    share=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_any_mixture_of_fields_keeps_its_answer(
    rows: list[int], width: int, height: int, dense: int, how: str, share: bool
) -> None:
    model = Fields(tuple(rows), width, height, dense, how)
    if share:
        largest = max(range(len(rows)), key=rows.__getitem__)
        for k in range(len(rows)):
            model.tables[k] = model.tables[largest]
    batch = ids_for(tuple(rows)), torch.rand(40, dense)
    rewritten(fold_lookups, model, *batch)
    with patch.object(folded_lookups, "_gain", lambda taken, *_: 1e9 * len(taken)):
        graph, changes = rewritten(fold_lookups, model, *batch)
    assert changes and count(graph, LOOKUP) == 1 and count(graph, LINEAR) == int(dense > 0)


def test_the_limit_is_a_setting_that_travels() -> None:
    recipe = Recipe((Fuse(rules=("fold_lookups",), fold_bytes=1000),))
    assert Recipe.from_json(recipe.to_json()) == recipe
    with pytest.raises(InputError, match="fold_bytes"):
        Fuse(fold_bytes=-1)
    rows = (7, 30, 2, 100)
    program = capture(Program.read(Fields(rows, 64, 256).eval(), (ids_for(rows), torch.rand(40, 0))))

    def folds(technique: Fuse) -> list[Change]:
        return [change for change in technique.apply(program).changes if change.rule == "fold lookups"]

    assert folds(Fuse()) and not folds(Fuse(fold_bytes=0)) and not folds(Fuse(fold_bytes=100))
