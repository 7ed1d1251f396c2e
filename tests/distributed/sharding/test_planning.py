"""Which rank gets which rows."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import IdOutOfRangeError, InputError
from fastrec.capture import capture
from fastrec.distributed.sharding import ShardPlan, plan_shards
from fastrec.program import Program

from .models import batch, captured

TRAFFIC = [batch(64, seed) for seed in range(4)]


def planned(world: int = 4, **settings: Any) -> ShardPlan:
    return plan_shards(captured(), world, **{"traffic": TRAFFIC, "least_bytes": 0, **settings})


def covered(plan: ShardPlan) -> bool:
    """Whether each row is on one rank."""
    return all(
        [piece.start for piece in table.pieces] == [0, *(piece.stop for piece in table.pieces)][:-1]
        and table.pieces[-1].stop == table.rows
        and len({piece.rank for piece in table.pieces}) == len(table.pieces)
        for table in plan.sharded
    )


def test_tables_go_to_the_rank_with_the_least_load() -> None:
    plan = planned(place="table", hot=0)
    assert covered(plan) and {table.way for table in plan.tables} == {"table"}
    ranks = [table.pieces[0].rank for table in plan.tables]
    assert sorted(ranks) == [0, 1, 2, 3]


def test_a_table_that_is_much_of_all_load_is_cut_and_its_pieces_have_the_same() -> None:
    plan = planned(hot=0)
    assert covered(plan)
    cut = next(table for table in plan.tables if table.name == "model.items.weight")
    # Most reads are of it, and of few of its rows.
    assert cut.way == "rows"
    ids = torch.cat([torch.cat([one[1], one[2].reshape(-1)]) for one in TRAFFIC])
    loads = []
    for piece in cut.pieces:
        reads = (ids >= piece.start) & (ids < piece.stop)
        loads.append((piece.stop - piece.start) / cut.rows + float(reads.double().mean()))
    # The first rows are read so often that one of them is much of a fair load.
    assert sum(loads) == pytest.approx(2) and max(loads[1:]) == pytest.approx(0.5, abs=0.05)
    sizes = [piece.stop - piece.start for piece in cut.pieces]
    assert sizes == sorted(sizes) and sizes[0] < cut.rows / 10


def test_hot_rows_are_those_that_are_read_most() -> None:
    table = planned(hot=0.05).tables[0]
    counts = torch.bincount(torch.cat([one[0] for one in TRAFFIC]), minlength=900)
    hot = torch.tensor(table.hot)
    assert 0 < len(hot) <= 45 and bool((counts[hot] > 1).all())
    others = torch.ones(900, dtype=torch.bool)
    others[hot] = False
    assert int(counts[hot].min()) >= int(counts[others].max())
    assert table.hot_reads == pytest.approx(int(counts[hot].sum()) / int(counts.sum()))
    without = planned(hot=0).tables[0]
    assert without.hot == () and without.answered > table.answered


def test_with_little_room_tables_are_cut_and_none_has_too_much() -> None:
    largest = 900 * 48
    everything = sum(table.rows * table.row_bytes for table in planned().tables)
    dense = planned().dense_bytes
    roomy = planned(world=2, hot=0, limit_bytes=dense + everything)
    assert all(roomy.bytes_on(rank) <= dense + everything for rank in range(2))
    limit = dense + everything // 4 + 96
    assert limit < largest
    tight = planned(hot=0, limit_bytes=limit)
    assert covered(tight) and max(tight.bytes_on(rank) for rank in range(4)) <= limit
    with pytest.raises(InputError, match="take more ranks"):
        planned(hot=0, limit_bytes=dense + everything // 4 - 96)
    with pytest.raises(InputError, match="take more ranks"):
        planned(hot=0, limit_bytes=limit, place="table")


@pytest.mark.parametrize("place", ["best", "table", "rows"])
@pytest.mark.parametrize("hot", [0, 0.05])
def test_with_too_little_room_it_says_what_is_needed_and_that_is_enough(place: str, hot: float) -> None:
    usual = planned(hot=hot)
    every = usual.dense_bytes + sum(len(table.hot) * table.row_bytes for table in usual.sharded)
    for limit in (1, every + 2000):
        with pytest.raises(InputError, match=rf"^limit_bytes={limit} .*too little for 4 ranks") as caught:
            planned(place=place, hot=hot, limit_bytes=limit)
        said = str(caught.value)
        assert "-" not in said.partition("Cure")[0] and ("place='best'" in said) == (place == "table")
        assert ("hot=..." in said) == bool(hot) and ("more ranks" in said) == (limit > 1)
        found = re.search(r"give limit_bytes=(\d+)", said)
        assert found is not None
        enough = int(found[1])
        plan = planned(place=place, hot=hot, limit_bytes=enough)
        assert max(plan.bytes_on(rank) for rank in range(4)) <= enough
        with pytest.raises(InputError, match="too little"):
            planned(place=place, hot=hot, limit_bytes=int(enough * 0.998) - 1)


def test_one_rank_sends_nothing() -> None:
    plan = planned(world=1)
    assert plan.per_sample == 0 and covered(plan)


def test_without_traffic_it_is_made_from_the_example() -> None:
    assert plan_shards(captured(), 2, least_bytes=0).samples == 32


def test_small_tables_are_on_every_rank() -> None:
    plan = planned(least_bytes=30_000)
    assert [table.way == "whole" for table in plan.tables] == [False, True, True, True]
    assert "less than 30,000" in plan.tables[1].reason


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(5000, 32, mode="sum")

    def forward(self, ids: Tensor) -> Tensor:
        return self.words(ids)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("length", "form"), [(2, "rows"), (20, "sums")])
def test_the_smaller_form_comes_back(length: int, form: str) -> None:
    traffic = [torch.randint(1000 if form == "rows" else 5000, (64, length)) for _ in range(2)]
    if form == "rows":
        traffic = [ids % 40 for ids in traffic]
    program = capture(Program.read(Mean().eval(), traffic[0]))
    plan = plan_shards(program, 2, traffic=traffic, least_bytes=0, hot=0)
    assert plan.tables[0].forms == (form,)
    other = plan_shards(program, 2, traffic=traffic, least_bytes=0, hot=0, form="rows")
    assert other.tables[0].forms == ("rows",) and other.per_sample >= plan.per_sample


def test_traffic_that_the_model_does_not_take_is_refused() -> None:
    bad = list(TRAFFIC[0])
    bad[0] = torch.full_like(bad[0], 900)
    with pytest.raises(IdOutOfRangeError, match="got id 900"):
        planned(traffic=[bad])
    with pytest.raises(InputError, match="no batches"):
        planned(traffic=[])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("world", 0),
        ("limit_bytes", 0.5),
        ("hot", 1.5),
        ("least_bytes", -1),
        ("place", "row"),
        ("form", "sums"),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        planned(**{name: value})


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match="got a Linear"):
        plan_shards(nn.Linear(2, 2), 2)  # type: ignore[arg-type]
