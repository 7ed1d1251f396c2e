"""torch's kernels for coded rows give the operators' numbers, and every backend has its lookups run there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec.backends import Backend, Eager, Inductor, coded_rows, direct
from fastrec.backends.bags import as_bags
from fastrec.backends.coded_rows import QUICK, bags_of
from fastrec.backends.direct import same_answer
from fastrec.backends.split import front_of, split_lookups, split_picks
from fastrec.errors import BackendError
from fastrec.graph import is_call
from fastrec.ops import INT4, INT8
from fastrec.program import Program
from fastrec.techniques import QuantizeTables

from .graphs import SETTINGS as EVERY
from .graphs import captured

PACK = {
    INT8: torch.ops.quantized.embedding_bag_byte_prepack,
    INT4: torch.ops.quantized.embedding_bag_4bit_prepack,
}
each_lookup = pytest.mark.parametrize("lookup", [INT8, INT4], ids=["int8", "int4"])


def rows_of(lookup: Any, width: int) -> Tensor:
    rng = torch.Generator().manual_seed(width)
    sizes = 10.0 ** torch.randint(-5, 4, (70, 1), generator=rng)
    rows: Tensor = PACK[lookup](torch.randn(70, width, generator=rng) * sizes + sizes)
    return rows


@each_lookup
@pytest.mark.parametrize("width", [2, 8, 16, 18, 64, 130])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5, 26), (3, 1, 4), (3000,)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_kernels_rows_are_the_operators(
    lookup: Any, width: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    rows = rows_of(lookup, width)
    ids = torch.randint(70, shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    assert same_answer(QUICK[lookup](rows, ids), lookup(rows, ids))
    strided = ids.expand(2, *shape).movedim(0, -1)
    assert same_answer(QUICK[lookup](rows, strided), lookup(rows, strided))


@each_lookup
@pytest.mark.parametrize("bad", [-1, 70])
def test_an_id_no_table_has_is_refused(lookup: Any, bad: int) -> None:
    for shape in ((1,), (3000,)):
        with pytest.raises((IndexError, RuntimeError)):
            QUICK[lookup](rows_of(lookup, 8), torch.full(shape, bad))
    with pytest.raises((IndexError, RuntimeError)):
        bags_of(lookup, rows_of(lookup, 8), torch.full((3, 2), bad), 0)


@each_lookup
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (3, 5), (100, 8), (3, 0)])
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("quick", [True, False])
def test_bags_are_sums_of_the_rows(
    lookup: Any, shape: tuple[int, int], mode: int, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not quick:
        monkeypatch.setitem(coded_rows._KERNELS, lookup, None)
    rows = rows_of(lookup, 12)
    ids = torch.randint(70, shape, generator=torch.Generator().manual_seed(2))
    exact = lookup(rows, ids).double()
    right = exact.mean(1) if mode else exact.sum(1)
    found = bags_of(lookup, rows, ids, mode)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5, equal_nan=True)
    if quick and shape[1]:
        for place in range(shape[0]):
            assert torch.equal(bags_of(lookup, rows, ids[place : place + 1], mode)[0], found[place])


class Served(nn.Module):
    """Candidates, a pooled history, and a table whose ids another lookup gives."""

    def __init__(self, chained: bool = False) -> None:
        super().__init__()
        self.items, self.users = nn.Embedding(60, 16), nn.Embedding(60, 16)
        self.register_buffer("group", torch.arange(60.0) % 7)
        self.groups = nn.Embedding(7, 16)
        self.head = nn.Linear(48 if chained else 32, 3)
        self.chained = chained

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
        parts = [self.items(item) * self.users(user), self.items(history).sum(1)]
        if self.chained:
            parts.append(self.groups(self.group[item].long()))
        out: Tensor = self.head(torch.cat(parts, 1))
        return out


def coded(bits: int, hot: float = 0.0) -> tuple[Program, Callable[[int], tuple[Tensor, ...]]]:
    def batch(rows: int) -> tuple[Tensor, ...]:
        rng = torch.Generator().manual_seed(rows)
        return tuple(torch.randint(60, size, generator=rng) for size in ((rows,), (rows,), (rows, 5)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        program = captured(Served(), batch(6))
    applied = QuantizeTables(bits=bits, least_bytes=0, hot=hot).apply(program)  # type: ignore[arg-type]
    assert len(applied.changes) == 2
    return program.with_model(applied.model), batch


# Packed weights change nothing in front.
SETTINGS = [backend for backend in EVERY if backend != Inductor(freeze=True)]


# Coded lookups run in front, by the same code with every compiler of picked ids: the slowest is asked for two of four.
CODED = [
    (backend, bits, hot)
    for bits, hot in [(16, 0.0), (8, 0.0), (4, 0.0), (8, 0.1)]
    for backend in SETTINGS
    if backend != Inductor() or (bits, hot) in [(4, 0.0), (8, 0.1)]
]


@pytest.mark.parametrize(
    ("backend", "bits", "hot"), CODED, ids=[f"{backend.label}-{bits}-{hot}" for backend, bits, hot in CODED]
)
def test_every_backend_serves_coded_tables(backend: Backend, bits: int, hot: float) -> None:
    if backend.unavailable() is not None:
        pytest.skip(str(backend.unavailable()))
    program, batch = coded(bits, hot)
    session = backend.compile(program)
    for rows in (1, 2, 33, 1000):
        with torch.no_grad():
            right = program.model(*batch(rows))[0]
        torch.testing.assert_close(session(*batch(rows))[0], right, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("split", [split_lookups, split_picks])
def test_coded_lookups_and_their_sums_run_in_front(split: Any) -> None:
    program, batch = coded(8)
    parts = split(program.model)
    assert parts.tables == 3
    assert not any(is_call(node, INT8) for node in parts.dense.graph.nodes)
    with torch.no_grad():
        right = program.model(*batch(9))[0]
        torch.testing.assert_close(parts.dense(*parts.lookups(*batch(9)))[0], right)
    bags = as_bags(parts.lookups)
    assert sum(node.target is bags_of for node in bags.graph.nodes) == 1
    front = front_of(parts.moved, batch(9))
    assert front is not None
    for left, other in zip(front(*batch(9)), parts.lookups(*batch(9)), strict=True):
        torch.testing.assert_close(left, other)


def test_the_kernel_serves_where_it_agrees_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    program, batch = coded(8)
    calls: list[int] = []

    def wrong(rows: Tensor, ids: Tensor) -> Tensor:
        calls.append(1)
        found: Tensor = INT8(rows, ids) * 1.0001
        return found

    with torch.no_grad():
        right = program.model(*batch(6))
    monkeypatch.setitem(QUICK, INT8, wrong)
    run = direct.direct(program.model, batch(6))
    assert calls
    calls.clear()
    assert same_answer(run(*batch(6)), right) and not calls
    monkeypatch.delitem(QUICK, INT8)
    assert same_answer(direct.direct(program.model, batch(6))(*batch(6)), right)


@pytest.mark.parametrize("backend", SETTINGS[1:], ids=lambda backend: backend.label)
def test_coded_rows_by_computed_ids_are_refused_by_name(backend: Backend) -> None:
    if backend.unavailable() is not None:
        pytest.skip(str(backend.unavailable()))
    batch = tuple(torch.randint(60, size) for size in ((6,), (6,), (6, 5)))
    program = captured(Served(chained=True), batch)
    gm = program.model
    rows = PACK[INT8](torch.randn(7, 16))
    gm.register_buffer("coded", rows)
    for node in list(gm.graph.nodes):
        if is_call(node, torch.ops.aten.embedding.default) and "groups" in str(node.args[0].target):
            with gm.graph.inserting_before(node):
                table = gm.graph.get_attr("coded")
                table.meta["val"] = node.args[0].meta["val"].new_empty(rows.shape, dtype=torch.uint8)
                made = gm.graph.call_function(INT8, (table, node.args[1]))
            made.meta.update(node.meta)
            node.replace_all_uses_with(made)
            gm.graph.erase_node(node)
    gm.recompile()
    with pytest.raises(BackendError, match=r"lookup_int8.*computed ids") as caught:
        backend.compile(program)
    assert caught.value.backend == backend.name
    Eager().compile(program)
