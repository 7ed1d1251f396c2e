"""Hot rows: the rows that calibration looks up most are exact, the others as coarse as without them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.backends.split import split_lookups
from fastrec.capture import capture
from fastrec.errors import InputError, TechniqueError
from fastrec.graph import constant
from fastrec.measure import tensor_bytes
from fastrec.program import Program
from fastrec.techniques import Applied, Fuse, QuantizeTables
from tests.techniques.rows import Rows

aten = torch.ops.aten
Bits = Literal[16, 8, 4]
ALL: tuple[Bits, ...] = (16, 8, 4)
each_bits = pytest.mark.parametrize("bits", ALL)
ROWS = 60


def batches(columns: int, *, seed: int = 0) -> list[tuple[Tensor]]:
    """Ids of which some come much more often, five batches."""
    rng = torch.Generator().manual_seed(seed)
    return [((ROWS * torch.rand(12, columns, generator=rng) ** 4).long(),) for _ in range(5)]


def captured(model: nn.Module, seen: Sequence[tuple[Tensor]], *, fuse: bool = False) -> Program:
    program = capture(Program.read(model.eval(), seen[0]))
    if fuse:
        program = program.with_model(Fuse().apply(program).model)
    return replace(program, calibration=tuple(seen))


def quantised(program: Program, bits: Bits, hot: float) -> tuple[fx.GraphModule, Applied]:
    made = QuantizeTables(bits, least_bytes=0, hot=hot).apply(program)
    assert isinstance(made.model, fx.GraphModule)
    return made.model, made


def most_seen(seen: Sequence[tuple[Tensor]], share: float) -> Tensor:
    counts = torch.bincount(torch.cat([ids.flatten() for (ids,) in seen]), minlength=ROWS).tolist()
    order = sorted((-count, row) for row, count in enumerate(counts) if count)
    return torch.tensor(sorted(row for _, row in order[: int(share * ROWS)]))


@each_bits
@pytest.mark.parametrize("width", [6, 15, 16])
@pytest.mark.parametrize("scaled", [False, True])
def test_hot_rows_are_exact_and_the_others_as_without_them(bits: Bits, width: int, scaled: bool) -> None:
    table = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(0))
    if scaled:  # columns of very different size are divided by powers of two
        table[:, 1:3] *= 1e-4 / 3
    seen = batches(3)
    program = captured(Rows(table), seen)
    coarse, _ = quantised(program, bits, 0.0)
    graph, made = quantised(program, bits, 0.2)
    hot = most_seen(seen, 0.2)
    assert len(hot) == 12 and len(made.changes) == 1
    for ids in (torch.arange(ROWS).view(20, 3), hot.repeat(2).view(8, 3)[:7]):
        rows, others = graph(ids)[0], coarse(ids)[0]
        exact = torch.isin(ids, hot)
        assert torch.equal(rows[exact], table[ids][exact])
        assert torch.equal(rows[~exact], others[~exact])
        assert not torch.equal(others[exact], table[ids][exact])


class Reads(nn.Module):
    """Every way to read a table: by rows, added up, by `index_select`, in bags; two of them read one table."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.items = nn.Embedding(ROWS, width)
        self.chosen = nn.Parameter(torch.randn(ROWS, width))
        self.sums = nn.EmbeddingBag(ROWS, width, mode="sum")
        self.means = nn.EmbeddingBag(ROWS, width, mode="mean")

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        return (
            self.items(ids[:, 0]),
            self.items(ids).sum(1),
            self.items(ids[:, :3]).mean(dim=1),
            self.chosen.index_select(0, ids[:, 1]),
            self.sums(ids),
            self.means(ids),
        )


@each_bits
@pytest.mark.parametrize("width", [16, 17])
@pytest.mark.parametrize("fuse", [False, True])
def test_whatever_reads_a_table_gets_its_hot_rows_exactly(bits: Bits, width: int, fuse: bool) -> None:
    torch.manual_seed(0)
    model = Reads(width)
    # The ten first rows take all of the traffic, so they are hot in every table.
    seen = [(torch.arange(10).view(10, 1).repeat(1, 4),)]
    graph, made = quantised(captured(model, seen, fuse=fuse), bits, 0.5)
    assert made.changes and not made.skipped
    for change in made.changes:
        assert re.search(r"; (\d+) rows exact, which take (\d+) of \2 lookups", change.detail), change.detail
    for rows in (1, 2, 33):
        ids = torch.randint(10, (rows, 4), generator=torch.Generator().manual_seed(rows))
        for found, right in zip(graph(ids), model(ids), strict=True):
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)
        assert torch.equal(graph(ids)[0], model(ids)[0]) and torch.equal(graph(ids)[3], model(ids)[3])
        # Other rows stay coarse.
        assert not torch.allclose(graph(ids + 20)[4], model(ids + 20)[4], rtol=1e-6, atol=1e-6)


class Fields(nn.Module):
    """Fields with embeddings and first-order weights, which fusion stacks to one table of one lookup."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Embedding(ROWS, 16) for _ in range(4))
        self.first = nn.ModuleList(nn.Embedding(ROWS, 1) for _ in range(4))

    def forward(self, ids: Tensor) -> Tensor:
        rows = torch.stack([table(ids[:, i]) for i, table in enumerate(self.wide)], 1)
        first = torch.cat([table(ids[:, i]) for i, table in enumerate(self.first)], 1)
        return torch.cat([rows.flatten(1), first], 1)


@each_bits
def test_a_stacked_table_stays_one_and_its_hot_rows_are_those_of_all_fields(bits: Bits) -> None:
    torch.manual_seed(0)
    model, seen = Fields(), batches(4)
    program = captured(model, seen, fuse=True)
    graph, made = quantised(program, bits, 0.1)
    (change,) = made.changes
    assert "(240, 17)" in change.detail and "24 rows exact" in change.detail
    counts = torch.zeros(4, ROWS, dtype=torch.long)
    for (ids,) in seen:
        for field in range(4):
            counts[field] += torch.bincount(ids[:, field], minlength=ROWS)
    taken = int(counts.flatten().sort(descending=True).values[:24].sum())
    assert f"take {taken} of {5 * 12 * 4} lookups" in change.detail
    # The hottest row of each field is among them.
    best = counts.argmax(1).view(1, 4)
    assert torch.equal(graph(best)[0], model(best))
    row = {16: 2 * 17, 8: 17 + 8, 4: 9 + 4}[bits]
    assert change.added_bytes == 240 * (row + 4) + 25 * 4 * 17
    # Float tables are gone: what is left beside is the shift of each field's ids, and the sizes of columns.
    assert change.added_bytes <= tensor_bytes(graph) <= change.added_bytes + 200


@each_bits
def test_a_row_does_not_depend_on_the_others_of_its_batch(bits: Bits) -> None:
    table = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0))
    table[3] *= 1e3
    graph, _ = quantised(captured(Rows(table), batches(1)), bits, 0.2)
    every = graph(torch.arange(ROWS).view(-1, 1))[0]
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1)).view(-1, 1)
    assert torch.equal(graph(order)[0], every[order[:, 0]])
    for one in range(ROWS):
        assert torch.equal(graph(torch.tensor([[one]]))[0][0], every[one])


@pytest.mark.parametrize("width", [16, 17])
@each_bits
def test_lookups_of_hot_rows_run_in_front_and_hand_over_one_tensor(bits: Bits, width: int) -> None:
    graph, _ = quantised(captured(Reads(width), batches(4)), bits, 0.2)
    parts = split_lookups(graph)
    for node in parts.dense.graph.nodes:
        held = constant(graph, node)
        assert held is None or len(held) < 10, node
    if (
        width == 16 and bits != 16
    ):  # otherwise a column is cut off, or rows made float32, before they are added
        handed = [node for node in parts.dense.graph.nodes if node.op == "placeholder"]
        assert len(handed) == 6 and not any(
            node.target is aten.add.Tensor for node in parts.dense.graph.nodes
        )
    (ids,) = batches(4, seed=1)[0]
    for found, right in zip(parts.dense(*parts.lookups(ids)), graph(ids), strict=True):
        assert torch.equal(found, right)


def test_rows_that_nobody_asked_for_are_not_hot() -> None:
    table = torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0))
    few = [(torch.tensor([[7], [7], [9]]),)]
    (change,) = quantised(captured(Rows(table), few), 8, 0.9)[1].changes
    assert "2 rows exact, which take 3 of 3 lookups in calibration" in change.detail
    # Without calibration the example says it.
    program = replace(captured(Rows(table), few), calibration=())
    assert quantised(program, 8, 0.9)[1].changes == (change,)
    nobody = [(torch.zeros(0, 1, dtype=torch.long),)]
    (change,) = quantised(replace(program, calibration=tuple(nobody)), 8, 0.9)[1].changes
    assert "exact" not in change.detail and change.added_bytes == ROWS * 24


def test_a_table_that_hot_rows_would_not_make_smaller_stays() -> None:
    program = captured(Rows(torch.randn(ROWS, 4)), batches(1))
    assert quantised(program, 8, 0.0)[1].changes
    made = QuantizeTables(8, least_bytes=0, hot=0.1).apply(program)
    assert made.model is program.model
    (skip,) = made.skipped
    assert re.search(r"takes 960 bytes, in int8 with 6 rows exact, .* 1072", skip.reason), skip.reason


def test_quantising_again_leaves_the_exact_rows() -> None:
    program = captured(Rows(torch.randn(ROWS, 16)), batches(1))
    graph, _ = quantised(program, 8, 0.2)
    again = QuantizeTables(4, least_bytes=0, hot=0.2).apply(program.with_model(graph))
    assert again.changes == ()
    assert [skip.reason for skip in again.skipped] == ["it holds the exact rows of another table"]


def test_calibration_by_ids_that_no_table_has_is_refused() -> None:
    program = captured(Rows(torch.randn(ROWS, 16)), [(torch.tensor([[3], [ROWS]]).clamp(max=ROWS - 1),)])
    program = replace(program, calibration=((torch.tensor([[3], [ROWS]]),),))
    with pytest.raises(TechniqueError, match=rf"row {ROWS} of .*table.*, which has {ROWS}") as caught:
        QuantizeTables(8, least_bytes=0, hot=0.1).apply(program)
    assert caught.value.technique == "quantize_tables"


@pytest.mark.parametrize("hot", [-0.1, 1, 1.5, float("nan"), "all", None])
def test_bad_shares_are_named(hot: Any) -> None:
    with pytest.raises(InputError, match="hot"):
        QuantizeTables(hot=hot)


def test_milder_settings_have_hot_rows_where_calibration_names_them() -> None:
    program = captured(Rows(torch.randn(ROWS, 16)), batches(1))

    def milder(technique: QuantizeTables, program: Program) -> list[tuple[int, float]]:
        steps = technique.milder(program, ())
        return [(step.bits, step.hot) for step in steps if isinstance(step, QuantizeTables)]

    assert milder(QuantizeTables(4), program) == [(4, 0.05), (8, 0.0), (16, 0.0)]
    assert milder(QuantizeTables(8, hot=0.01), program) == [(8, 0.05), (16, 0.01)]
    assert milder(QuantizeTables(4, hot=0.2), program) == [(8, 0.2), (16, 0.2)]
    assert milder(QuantizeTables(4), replace(program, calibration=())) == [(8, 0.0), (16, 0.0)]
