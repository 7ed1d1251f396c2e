"""Quantised tables: which are held in fewer bits, what is read of them, and which stay, with the reason."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.errors import InputError, TechniqueError
from fastrec.graph import is_call
from fastrec.measure import tensor_bytes
from fastrec.ops import INT4, INT8
from fastrec.program import Program
from fastrec.techniques import Applied, Fuse, QuantizeTables
from tests.techniques.rows import Rows

aten = torch.ops.aten
Bits = Literal[16, 8, 4]
ALL: tuple[Bits, ...] = (16, 8, 4)
each_bits = pytest.mark.parametrize("bits", ALL)
BATCH = (torch.randint(50, (6, 4), generator=torch.Generator().manual_seed(0)),)


def applied(
    model: nn.Module, bits: Bits, *batch: Tensor, fuse: bool = False
) -> tuple[fx.GraphModule, Applied, Program]:
    """The graph with quantised tables, and what became of each; the graph it came from is left as it was."""
    program = capture(Program.read(model.eval(), batch))
    if fuse:
        program = program.with_model(Fuse().apply(program).model)
    before = program.model.code
    made = QuantizeTables(bits, least_bytes=0).apply(program)
    assert program.model.code == before
    assert isinstance(made.model, fx.GraphModule)
    return made.model, made, program


def decoded(model: nn.Module, bits: Bits, names: tuple[str, ...]) -> nn.Module:
    """The model with the entries of these tables as the form holds them."""
    other = copy.deepcopy(model)
    for name in names:
        table = other.get_parameter(name)
        graph, made, _ = applied(Rows(table.detach()), bits, torch.arange(len(table)))
        assert len(made.changes) == 1
        with torch.no_grad():
            table.copy_(graph(torch.arange(len(table)))[0])
    return other


class Reads(nn.Module):
    """Every way to read a table: by rows, by parts of a batch, added up, by `index_select`, in bags."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.items = nn.Embedding(50, width, padding_idx=0)
        self.chosen = nn.Parameter(torch.randn(50, width))
        self.sums = nn.EmbeddingBag(50, width, mode="sum")
        self.means = nn.EmbeddingBag(50, width, mode="mean")
        self.head = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.items(ids[:, 0]) + self.items(ids).sum(1) + self.items(ids[:, :3]).mean(dim=1)
        rows = rows + self.chosen.index_select(0, ids[:, 1]) + self.sums(ids) - self.means(ids)
        out: Tensor = self.head(rows)
        return out


NAMES = ("items.weight", "chosen", "sums.weight", "means.weight")


@each_bits
@pytest.mark.parametrize("width", [16, 17])
@pytest.mark.parametrize("fuse", [False, True])
def test_the_answer_is_the_models_with_the_entries_that_are_held(bits: Bits, width: int, fuse: bool) -> None:
    torch.manual_seed(0)
    model = Reads(width)
    graph, made, _ = applied(model, bits, *BATCH, fuse=fuse)
    assert made.changes and not made.skipped
    assert not any(tensor.shape[-1] == width for tensor in graph.parameters() if len(tensor) >= 50)
    right = decoded(model, bits, NAMES).double()
    for rows in (1, 2, 33):
        ids = torch.randint(50, (rows, 4), generator=torch.Generator().manual_seed(rows))
        with torch.no_grad():
            torch.testing.assert_close(graph(ids)[0].double(), right(ids), rtol=1e-5, atol=1e-5)
    assert not any(is_call(node, aten.embedding_bag.padding_idx) for node in graph.graph.nodes)


@each_bits
def test_a_table_of_many_lookups_is_held_once_and_the_float_one_is_gone(bits: Bits) -> None:
    graph, made, program = applied(Reads(), bits, *BATCH)
    width = {16: 32, 8: 24, 4: 12}[bits]
    assert [change.added_bytes for change in made.changes] == [50 * width] * 4
    dense = sum(p.nbytes for p in program.model.parameters()) - 4 * 50 * 64
    assert tensor_bytes(graph) == dense + 4 * 50 * width
    # What is not a table is shared.
    assert {p.data_ptr() for p in graph.parameters()} <= {p.data_ptr() for p in program.model.parameters()}


class Fields(nn.Module):
    """Fields with an embedding and a first-order weight of another size; fusion joins them in one row."""

    def __init__(self, fields: int = 5) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Embedding(50, 16) for _ in range(fields))
        self.first = nn.ModuleList(nn.Embedding(50, 1) for _ in range(fields))
        self.head = nn.Linear(fields * 16, 1)
        for table in self.wide:
            nn.init.normal_(table.weight, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        rows = torch.stack([table(ids[:, i]) for i, table in enumerate(self.wide)], 1)
        first = torch.cat([table(ids[:, i]) for i, table in enumerate(self.first)], 1).sum(1, keepdim=True)
        out: Tensor = self.head(rows.flatten(1)) + first
        return out


@pytest.mark.parametrize(("bits", "most"), [(16, 3e-4), (8, 0.01), (4, 0.12)])
def test_joined_columns_keep_their_own_size(bits: Bits, most: float) -> None:
    ids = torch.randint(50, (40, 5), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = Fields()
    graph, made, _ = applied(model, bits, ids, fuse=True)
    assert len(made.changes) == 1 and "(250, 17)" in made.changes[0].detail
    head = float(model.head.weight.detach().abs().sum())
    with torch.no_grad():
        # A hundredth of the first-order weights: they would drown in a range they share.
        off = (graph(ids)[0] - model(ids)).abs().max()
    assert off <= most * (0.04 * head + 5 * 3)
    assert not any("moved" in key and value for key, value in graph.meta.items())


def test_padding_rows_and_constant_rows_come_back_exactly() -> None:
    model = Rows(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)))
    model.table.weight.data[0] = 0.0
    model.table.weight.data[1] = 3.7
    ids = torch.arange(6)
    for bits in ALL:
        graph, _, _ = applied(model, bits, ids)
        found = graph(ids)[0]
        assert torch.equal(found[0], torch.zeros(16))
        assert bits != 8 or torch.equal(found[1], torch.full((16,), 3.7))


@each_bits
def test_a_row_alone_is_the_row_beside_any_other(bits: Bits) -> None:
    table = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    table[3] *= 1e3
    graph, _, _ = applied(Rows(table), bits, torch.arange(6))
    every = graph(torch.arange(40))[0]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(graph(order)[0], every[order])
    for one in range(40):
        assert torch.equal(graph(torch.tensor([one]))[0][0], every[one])


class Left(nn.Module):
    """One table read by a lookup as `how` says."""

    def __init__(self, how: str, table: Tensor) -> None:
        super().__init__()
        self.how = how
        self.table = nn.Parameter(table)
        self.register_buffer("next", torch.arange(float(len(table))).flip(0))

    def forward(self, ids: Tensor) -> Any:
        rows = nn.functional.embedding(ids, self.table)
        if self.how == "tied":
            return rows.sum(1) @ self.table.t()
        if self.how == "chained":
            return nn.functional.embedding(
                nn.functional.embedding(ids, self.next.unsqueeze(1)).long().squeeze(-1), self.table
            )
        if self.how in ("weighted", "max"):
            weights = torch.ones_like(ids, dtype=rows.dtype) if self.how == "weighted" else None
            mode = "max" if weights is None else "sum"
            return nn.functional.embedding_bag(ids, self.table, mode=mode, per_sample_weights=weights)
        return rows


PLAIN = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
LEFT: list[tuple[str, Callable[[], nn.Module], str]] = [
    ("tied", lambda: Left("tied", PLAIN), "read otherwise as well, by (t|transpose|matmul|permute|numpy_T)"),
    ("chained", lambda: Left("chained", PLAIN), "do not come from the inputs alone"),
    ("weighted", lambda: Left("weighted", PLAIN), "weighted"),
    ("max", lambda: Left("max", PLAIN), "maxima"),
    ("half", lambda: Left("", PLAIN.half()), "holds float16"),
    ("double", lambda: Left("", PLAIN.double()), "holds float64"),
    ("nan", lambda: Left("", PLAIN.index_fill(0, torch.tensor([7]), torch.nan)), "holds nan"),
    ("inf", lambda: Left("", PLAIN.index_fill(0, torch.tensor([7]), torch.inf)), "holds .* to inf"),
    ("large", lambda: Left("", PLAIN * 1e37), "holds .*e.37"),
    ("narrow", lambda: Left("", PLAIN[:, :2]), "takes 8 bytes, in int8 10"),
]


@pytest.mark.parametrize(("how", "build", "reason"), LEFT, ids=[case[0] for case in LEFT])
def test_what_stays_has_its_reason(how: str, build: Callable[[], nn.Module], reason: str) -> None:
    program = capture(Program.read(build().eval(), BATCH))
    made = QuantizeTables(8, least_bytes=0).apply(program)
    assert made.model is program.model and made.changes == ()
    assert any(re.search(reason, skip.reason) for skip in made.skipped), made.skipped


def test_a_view_of_the_table_keeps_it() -> None:
    shared = torch.randn(50, 8)
    first, second = Left("", shared), Left("", shared[10:])

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.first(ids) + self.second(ids % 40)
            return out

    model = Both()
    model.second.table = nn.Parameter(model.first.table.detach()[10:])
    made = QuantizeTables(8, least_bytes=0).apply(capture(Program.read(model.eval(), BATCH)))
    assert made.changes == ()
    assert {skip.reason for skip in made.skipped} == {"another constant lies in the same memory"}


def test_small_tables_stay_and_tables_that_would_not_be_themselves() -> None:
    program = capture(Program.read(Left("", PLAIN).eval(), BATCH))
    made = QuantizeTables(8).apply(program)
    assert made.model is program.model
    assert made.skipped[0].reason == f"its 1600 bytes are less than {1 << 20}"
    # In float16 entries of 1e-8 are 0 or 6e-8.
    tiny = capture(Program.read(Left("", PLAIN * 1e-8).eval(), BATCH))
    assert "a column would be off by" in QuantizeTables(16, least_bytes=0).apply(tiny).skipped[0].reason
    assert QuantizeTables(8, least_bytes=0).apply(tiny).changes


def test_ids_that_no_table_has_are_refused() -> None:
    graph, _, _ = applied(Rows(PLAIN), 8, torch.arange(6))
    for bad in (-1, 50):
        with pytest.raises((IndexError, RuntimeError)):
            graph(torch.tensor([bad]))


def test_the_graph_calls_one_operator_a_lookup() -> None:
    for bits, lookup in ((8, INT8), (4, INT4)):
        graph, _, _ = applied(Reads(), bits, *BATCH)  # type: ignore[arg-type]
        assert sum(is_call(node, lookup) for node in graph.graph.nodes) == 6


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"bits": 2}, "bits"), ({"bits": 8.5}, "bits"), ({"least_bytes": -1}, "least_bytes")],
)
def test_bad_settings_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=name):
        QuantizeTables(**settings)


def test_a_model_that_was_not_captured_is_refused() -> None:
    with pytest.raises(TechniqueError, match="capture") as caught:
        QuantizeTables().apply(Program.read(Rows(PLAIN), (torch.arange(6),)))
    assert caught.value.technique == "quantize_tables"


def test_milder_settings_have_more_bits() -> None:
    program = Program.read(nn.Linear(2, 1).eval(), torch.randn(3, 2))
    assert [t.bits for t in QuantizeTables(bits=4).milder(program, ())] == [8, 16]  # type: ignore[attr-defined]
    assert QuantizeTables(bits=16).milder(program, ()) == ()


@pytest.mark.parametrize(
    ("bits", "entry", "most"), [(8, 3.0, 0.002), (8, 1e6, 0.002), (4, 3.0, 0.04), (4, 1e4, 0.04)]
)
def test_one_large_entry_spoils_no_other_row(bits: Bits, entry: float, most: float) -> None:
    torch.manual_seed(0)
    table = torch.randn(5000, 32) * 0.1
    table[7, 3] = entry
    graph, made, _ = applied(Rows(table), bits, torch.arange(9))
    assert len(made.changes) == 1
    others = torch.arange(100, 200)
    assert (graph(others)[0] - table[others]).abs().max() < most
