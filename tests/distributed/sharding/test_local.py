"""What ranks ask one another for, and what comes of it: all ranks of one process, every form of lookup."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from fastrec.capture import capture
from fastrec.distributed.sharding import ShardPlan, plan_shards
from fastrec.distributed.sharding.tables import find_tables
from fastrec.errors import IdOutOfRangeError, InputError
from fastrec.program import Program
from fastrec.techniques import Fuse, QuantizeTables
from tests.checks import double

from .models import FORMS, Loopback, Ranker, batch, captured

TRAFFIC = [batch(64, seed) for seed in range(4)]
PLACES: tuple[Literal["table", "rows"], ...] = ("table", "rows")


def planned(program: Program, world: int, **settings: object) -> ShardPlan:
    return plan_shards(program, world, **{"traffic": TRAFFIC, "least_bytes": 0, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", PLACES)
def test_rows_give_the_same_bits(form: str, place: Literal["table", "rows"]) -> None:
    program = captured(form)
    for world, hot in ((1, 0.0), (2, 0.0), (4, 0.05), (3, 1.0)):
        ranks = Loopback(program, planned(program, world, place=place, form="rows", hot=hot))
        for rank in range(world):
            for rows in (64, 3, 1, 0):
                given = batch(rows, rank)
                assert torch.equal(ranks(rank, *given)[0], program.model(*given)[0])


@pytest.mark.parametrize("form", FORMS)
def test_sums_are_those_of_float64_up_to_rounding(form: str) -> None:
    program = captured(form)
    plan = planned(program, 3, place="rows", hot=0.02)
    forced = with_sums(plan, program)
    assert sum("sums" in table.forms for table in forced.tables) >= 3
    ranks = Loopback(program, forced)
    torch.manual_seed(0)
    model = Ranker().eval()
    for rank in range(3):
        given = batch(64, 10 + rank)
        found, alone = ranks(rank, *given)[0], program.model(*given)[0].detach()
        (right,) = double(model, "forward", given)
        # Where tables hold fewer bits, these are off as well, in one process as in three.
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)
        assert float((found - right).abs().max()) <= 2 * float((alone - right).abs().max()) + 1e-6
        # Each row's sums are added up in one order, whatever is beside it.
        few = ranks(rank, *(x[5:9] for x in given))[0]
        torch.testing.assert_close(few, found[5:9], rtol=0, atol=1e-7)


def with_sums(plan: ShardPlan, program: Program) -> ShardPlan:
    """The plan with sums wherever they may be had."""
    only = {table.name for table in plan.sharded}
    found = find_tables(program.model, only=only)  # type: ignore[arg-type]
    able = {table.name: [one.sums is not None for one in table.lookups] for table in found}
    tables = tuple(
        dataclasses.replace(table, forms=tuple("sums" if one else "rows" for one in able[table.name]))
        if table.way != "whole"
        else table
        for table in plan.tables
    )
    return dataclasses.replace(plan, tables=tables)


def test_looked_up_sums_do_not_depend_on_the_rows_beside_them() -> None:
    program = captured()
    ranks = Loopback(program, with_sums(planned(program, 4, place="rows"), program))
    me, given = ranks.ranks[1], batch(64, 3)

    def sums(flat: tuple[Tensor, ...]) -> list[Tensor]:
        found: list[Tensor] = []
        values = me.values(flat)
        for number, one in enumerate(me.asked(values)):
            answers = [ranks._answer(1, number, one, owner) for owner in range(4)]
            found += me.channels[number].finish(one, answers, me.held[number], values).values()
        return found

    for whole, part in zip(sums(given), sums(tuple(x[7:8] for x in given)), strict=True):
        assert torch.equal(whole[7:8], part)


class Towers(nn.Module):
    """Fields so few that they are folded into the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(500, 64) for _ in range(4))
        self.layers = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(torch.cat([t(ids[:, k]) for k, t in enumerate(self.tables)], 1)).squeeze(1)  # type: ignore[no-any-return]


def test_folded_tables_come_back_as_sums_where_that_is_less() -> None:
    torch.manual_seed(0)
    ids = [torch.randint(500, (64, 4)) for _ in range(4)]
    model = Towers().eval()
    program = capture(Program.read(model, (ids[0],)))
    program = program.with_model(Fuse().apply(program).model)
    traffic = [(one,) for one in ids]
    plan = plan_shards(program, 4, traffic=traffic, least_bytes=0, hot=0, place="table")
    rows = plan_shards(program, 4, traffic=traffic, least_bytes=0, hot=0, place="table", form="rows")
    (table,) = plan.sharded
    assert table.forms == ("sums",) and plan.per_sample < rows.per_sample / 3
    (right,) = double(model, "forward", (ids[1],))
    found = Loopback(program, plan)(2, ids[1])[0]
    assert float((found - right).abs().max()) < 1e-6
    # As codes, rows are smaller than sums of them.
    coded = program.with_model(QuantizeTables(least_bytes=0).apply(program).model)
    (table,) = plan_shards(coded, 4, traffic=traffic, least_bytes=0, hot=0, place="table").sharded
    assert table.forms == ("rows",)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", ["as it is", "fused, int8"])
def test_what_is_expected_is_what_travels(form: str, place: Literal["table", "rows"]) -> None:
    program = captured(form)
    plan = planned(program, 4, place=place)
    ranks = Loopback(program, plan)
    for given in TRAFFIC:
        for rank in range(4):
            ranks(rank, *given)
    assert ranks.travelled == pytest.approx(plan.per_sample * plan.samples * 4)


def test_an_id_of_no_row_is_refused_before_anybody_is_asked() -> None:
    program = captured()
    for plan in (planned(program, 2), with_sums(planned(program, 2), program)):
        rank = Loopback(program, plan).ranks[0]
        for place, bad in ((0, 900), (1, -1), (3, 60), (4, 300)):
            given = list(batch(8, 0))
            given[place] = given[place].clone()
            given[place].view(-1)[5] = bad
            with pytest.raises(IdOutOfRangeError, match=f"looked up at {bad}, expected 0 <= id"):
                rank.asked(rank.values(given))


def test_a_plan_of_another_model_is_refused() -> None:
    program = captured()
    plan = planned(program, 2)
    for change in (
        {"rows": 901}, {"name": "others"}, {"forms": ()}, {"pieces": plan.tables[0].pieces[1:]}, {"row_bytes": 4},
    ):  # fmt: skip
        other = dataclasses.replace(
            plan, tables=(dataclasses.replace(plan.tables[0], **change), *plan.tables[1:])
        )
        with pytest.raises(InputError, match="the plan is for another model"):
            Loopback(program, other)
