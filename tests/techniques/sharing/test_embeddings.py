"""Shared tables: what is kept once, what is read of it, and which tables stay, with the reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec import compress
from fastrec.backends import Backend, Eager, OnnxRuntime
from fastrec.backends.split import split_lookups
from fastrec.capture import capture
from fastrec.cost import cost
from fastrec.errors import InputError
from fastrec.graph import constant
from fastrec.measure import tensor_bytes
from fastrec.moved import release_moved
from fastrec.program import Program
from fastrec.serving.sides import split_sides
from fastrec.techniques import Applied, Fuse, QuantizeTables, ShareEmbeddings, Technique
from tests.checks import unplaced

ROWS = 60
SHARE = ShareEmbeddings(least_bytes=0)
FEWER = ShareEmbeddings(keep=0.5, least_bytes=0)


def table(size: int, width: int, different: int, seed: int = 0) -> Tensor:
    """Rows of which so many are different, the first of zeros."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(different, width, generator=rng)
    rows[0] = 0
    chosen = torch.cat(
        [torch.arange(different), torch.randint(different, (size - different,), generator=rng)]
    )
    return rows[chosen]


def embedding(rows: Tensor) -> nn.Embedding:
    return nn.Embedding.from_pretrained(rows.clone(), padding_idx=0)


class Reads(nn.Module):
    """Every way to read a table: by rows, by parts of a batch, added up, by `index_select`, in bags."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.items = embedding(table(ROWS, width, 11))
        self.chosen = nn.Parameter(table(ROWS, width, 12, 1))
        self.sums = nn.EmbeddingBag.from_pretrained(table(ROWS, width, 13, 2), mode="sum", padding_idx=0)
        self.means = nn.EmbeddingBag.from_pretrained(table(ROWS, width, 14, 3), mode="mean")

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        return (
            self.items(ids),
            self.items(ids[:, 0]),
            self.items(ids[:, :3]).mean(dim=1),
            self.chosen.index_select(0, ids[:, 1]),
            self.sums(ids),
            self.means(ids),
        )


def ids(rows: int, columns: int = 4, size: int = ROWS) -> Tensor:
    return torch.randint(size, (rows, columns), generator=torch.Generator().manual_seed(rows))


def captured(model: nn.Module, *batch: Tensor, calibration: Sequence[tuple[Tensor, ...]] = ()) -> Program:
    program = capture(Program.read(model.eval(), batch))
    return replace(program, calibration=tuple(calibration))


def applied(program: Program, *techniques: Technique) -> tuple[fx.GraphModule, Applied]:
    made = Applied(program.model)
    for technique in techniques:
        made = technique.apply(program)
        program = program.with_model(made.model)
    assert isinstance(made.model, fx.GraphModule)
    return made.model, made


@pytest.mark.parametrize(
    "order", [(SHARE,), (Fuse(), SHARE), (SHARE, Fuse())], ids=["alone", "after", "before"]
)
def test_equal_rows_are_kept_once_and_every_answer_is_as_it_was(order: tuple[Technique, ...]) -> None:
    model = Reads()
    program = captured(model, ids(6))
    graph, made = applied(program, *order)
    if order[-1] is SHARE:
        assert len(made.changes) == 4 and not made.skipped
        kept = sum(4 * ROWS + 64 * different for different in (11, 12, 13, 14))
        assert sum(change.added_bytes for change in made.changes) == kept == tensor_bytes(graph)
        assert all("3840 -> " in change.detail for change in made.changes)
        assert SHARE.apply(program.with_model(graph)).changes == ()
    for rows in (0, 1, 33):
        for found, right in zip(graph(ids(rows)), model(ids(rows)), strict=True):
            assert found.shape == right.shape
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)
    assert torch.equal(graph(ids(33))[0], model(ids(33))[0]) and torch.equal(
        graph(ids(1))[3], model(ids(1))[3]
    )


class Columns(nn.Module):
    """One table for each column of ids; answers with all rows."""

    def __init__(self, *tables: Tensor) -> None:
        super().__init__()
        self.tables = nn.ModuleList(embedding(one) for one in tables)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([one(x[:, k]) for k, one in enumerate(self.tables)], 1)


def test_tables_with_rows_in_common_share_them() -> None:
    whole, other = torch.randn(40, 8), torch.randn(30, 8)
    some = torch.cat([whole[[5, 9, 9, 3]].repeat(5, 1), torch.randn(2, 8)])
    model = Columns(some, whole, other)
    graph, made = applied(captured(model, ids(6, 3, 20)), SHARE)
    detail = {change.site.split(".")[2]: change.detail for change in made.changes}
    assert (
        detail["0"]
        == "2 rows of (22, 8) are kept, the others are rows of model.tables.1.weight: 704 -> 152 bytes"
    )
    assert [skip.reason for skip in made.skipped] == ["its 30 rows are all different"]
    assert tensor_bytes(graph) == 32 * (42 + 30) + 4 * 22
    # Where the whole table lies now is known, so that the original can read it there.
    moved = {old: new for old, new in graph.meta["moved"].items() if "tables.1" in old}
    assert list(moved.values()) == [("model_tables_1_weight_rows", 0, 40, 0, 8)]
    assert torch.equal(graph(ids(50, 3, 20))[0], model(ids(50, 3, 20)))
    original = Program.read(model, ids(6, 3, 20))
    original = original.with_model(original.draft())
    assert release_moved(original, graph) == 1
    shared = original.model.get_parameter("tables.1.weight").data_ptr()
    assert shared == graph.get_buffer("model_tables_1_weight_rows").data_ptr()
    # A map that takes what it saves is not made.
    few = captured(Columns(table(40, 8, 36)), ids(6, 1, 20))
    (skip,) = SHARE.apply(few).skipped
    assert skip.reason == "36 of its 40 rows are different: that saves 128 bytes, a map takes 160"


class Tied(nn.Module):
    """An output matrix that holds the bits of the input table, one that is the table, and one table read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.out = embedding(torch.randn(20, 8)), nn.Linear(8, 20, bias=False)
        self.out.weight.data.copy_(self.items.weight)
        self.own, self.own_out = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
        self.own_out.weight = self.own.weight
        self.twice = nn.Embedding(40, 8)
        self.copied = embedding(self.twice.weight.detach())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows = self.items(x[:, 0]) + self.twice(x[:, 1]) - self.twice(x[:, 0]) * self.copied(x[:, 1])
        return rows, self.out(rows), self.own_out(self.own(x[:, 1]) * rows)


def test_tables_of_the_same_bits_are_one_and_what_is_tied_stays_tied() -> None:
    torch.manual_seed(0)
    model = Tied()
    program = captured(model, ids(6, 2, 20))
    graph, made = applied(program, SHARE)
    assert {change.site: change.detail for change in made.changes} == {
        "model.items.weight": "equal to model.out.weight, bit for bit: 640 -> 0 bytes",
        "model.copied.weight": "equal to model.twice.weight, bit for bit: 1280 -> 0 bytes",
    }
    reasons = {skip.site: skip.reason for skip in made.skipped}
    assert unplaced(reasons["model.own_out.weight"]) == "it is read otherwise as well, by linear"
    assert reasons["model.twice.weight"] == (
        "its 40 rows are all different; it is one tensor for 3 lookups, and stays so"
    )
    assert tensor_bytes(graph) == 4 * 8 * (20 + 30 + 40)
    assert graph.meta["moved"]["model.items.weight"] == ("model.out.weight", 0, 20, 0, 8)
    for found, right in zip(graph(ids(9, 2, 20)), model(ids(9, 2, 20)), strict=True):
        assert torch.equal(found, right)
    assert SHARE.apply(program.with_model(graph)).changes == ()
    # Numbers that are equal are not enough.
    model.copied.weight.data[3, 3], model.twice.weight.data[3, 3] = -0.0, 0.0
    sites = {change.site: change.detail for change in SHARE.apply(captured(model, ids(6, 2, 20))).changes}
    assert sites["model.copied.weight"].startswith(
        "1 rows of (40, 8) are kept, the others are rows of model.twice.weight"
    )


def test_whatever_bits_rows_hold_come_back() -> None:
    odd = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [torch.nan, 1.0], [torch.inf, -torch.inf]]).repeat(12, 4)
    graph, made = applied(captured(Columns(odd), torch.arange(6).view(-1, 1)), SHARE)
    assert "4 rows of (48, 8)" in made.changes[0].detail
    found = graph(torch.arange(48).view(-1, 1))[0]
    assert torch.equal(found.view(torch.int32), odd.view(torch.int32))
    (skip,) = FEWER.apply(captured(Columns(odd), torch.arange(6).view(-1, 1))).skipped
    assert skip.reason == "it holds NaN or infinities"


def test_cold_rows_become_few_and_hot_ones_and_zeros_stay() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 16, generator=rng)
    rows[[0, 150]] = 0.0
    seen = [((40 * torch.rand(50, 1, generator=rng) ** 3).long() + 100,) for _ in range(4)]
    program = captured(Columns(rows), seen[0][0], calibration=seen)
    graph, made = applied(program, replace(SHARE, keep=0.2))
    (change,) = made.changes
    kept = dict(graph.named_buffers())
    assert {name: tuple(held.shape) for name, held in kept.items()} == {
        "model_tables_0_weight_rows": (39, 16), "model_tables_0_weight_places": (200,)
    }  # fmt: skip
    assert change.added_bytes == 39 * 64 + 200 * 4
    found = graph(torch.arange(200).view(-1, 1))[0]
    counts = torch.bincount(torch.cat([one for (one,) in seen]).flatten(), minlength=200)
    hottest = counts.argsort(descending=True, stable=True)[:19]
    assert torch.equal(found[hottest], rows[hottest])
    assert torch.equal(found[[0, 150]], torch.zeros(2, 16))
    right = (found == rows).all(1)
    text = re.search(r"(\d+) of 200 lookups in calibration exact, rows off by ([\d.]+)%", change.detail)
    assert text and int(text[1]) == int(counts[right].sum()) >= int(counts[hottest].sum()) > 150
    weights = 1.0 + counts
    off = (weights * (found - rows).square().sum(1)).sum() / (weights * rows.square().sum(1)).sum()
    assert float(text[2]) == pytest.approx(100 * float(off.sqrt()), abs=0.06)
    # More rows are nearer, and those that nobody looks up are off more than those that somebody does.
    closer = applied(program, replace(SHARE, keep=0.8))[0](torch.arange(200).view(-1, 1))[0]
    assert float((closer - rows).norm()) < 0.7 * float((found - rows).norm())
    # A row is the same whatever is beside it.
    order = torch.randperm(200, generator=rng).view(-1, 1)
    assert torch.equal(graph(order)[0], found[order[:, 0]])


def test_a_table_that_would_not_be_smaller_stays() -> None:
    program = captured(Columns(torch.randn(40, 1), torch.randn(40, 8)), ids(6, 2, 40))
    made = replace(SHARE, keep=0.9).apply(program)
    assert made.changes == () and made.model is program.model
    assert {skip.reason for skip in made.skipped} == {"its 40 rows are all different"}


@pytest.mark.parametrize("backend", [Eager(), OnnxRuntime(lookups="torch")], ids=str)
def test_every_backend_has_both_lookups_in_front(backend: Backend) -> None:
    class Served(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items, self.users = embedding(table(ROWS, 16, 9)), embedding(table(ROWS, 16, 8))
            self.head = nn.Linear(16, 3)

        def forward(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
            out: Tensor = self.head(self.items(item) * self.users(user) + self.items(history).sum(1))
            return out

    torch.manual_seed(0)
    batch = ids(6, 1)[:, 0], ids(6, 1)[:, 0], ids(6, 5)
    program = captured(Served(), *batch)
    graph, made = applied(program, SHARE)
    assert len(made.changes) == 2
    parts = split_lookups(graph)
    held = [constant(graph, node) for node in parts.dense.graph.nodes]
    assert parts.tables == 6 and not any(one is not None and len(one) > 3 for one in held)
    session = backend.compile(program.with_model(graph))
    for found, right in zip(session(*batch), program.model(*batch), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    # Two rows are looked up for one: a place and what lies there.
    plain, shared = cost(program, 10), cost(program.with_model(graph), 10)
    assert shared.lookups == 2 * plain.lookups and shared.multiply_adds == plain.multiply_adds


def test_a_catalogue_of_shared_rows_is_computed_once() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = embedding(table(ROWS, 8, 9))

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (user * self.items(item).exp()).sum(1)

    fast = compress(
        Towers(), {"user": torch.randn(1, 8).repeat(6, 1), "item": ids(6, 1)[:, 0]}, recipe=[Fuse(), SHARE],
        request_features=["user"], backends=[Eager()], batch_sizes=(8,), seconds=2, progress=False,
        keep_original=False,
    )  # fmt: skip
    assert [len(step.changes) for step in fast.report.steps if step.technique == "share_embeddings"] == [1]
    assert fast.program is not None and fast.exact
    sides = split_sides(fast.program)
    assert [str(node.target) for node in sides.items.graph.output_node().all_input_nodes] == [
        "aten.exp.default"
    ]
    user = torch.randn(1, 8)
    scores = fast.precompute({"item": torch.arange(ROWS)})({"user": user}, torch.arange(ROWS))
    torch.testing.assert_close(scores, Towers()(user, torch.arange(ROWS)))


def test_shared_rows_may_be_held_in_fewer_bits() -> None:
    model = Reads()
    graph, made = applied(captured(model, ids(6)), SHARE, QuantizeTables(8, least_bytes=0))
    assert len(made.changes) == 4
    for found, right in zip(graph(ids(33)), model(ids(33)), strict=True):
        torch.testing.assert_close(found, right, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, float("nan"), True, "all", None])
def test_bad_shares_are_named(keep: Any) -> None:
    with pytest.raises(InputError, match="keep"):
        ShareEmbeddings(keep=keep)


def test_milder_settings_keep_more_rows() -> None:
    program = captured(Columns(torch.randn(40, 8)), ids(6, 1, 40))
    milder = ShareEmbeddings(keep=0.6, least_bytes=5).milder(program, ())
    assert milder == (ShareEmbeddings(keep=0.75, least_bytes=5), ShareEmbeddings(least_bytes=5))
    assert ShareEmbeddings().milder(program, ()) == ()
