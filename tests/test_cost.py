"""Counted work is the work that is done: sizes and products are compared with those of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fastrec.capture import capture
from fastrec.cost import Cost, cost, costs, per_candidate, per_request
from fastrec.errors import InputError
from fastrec.program import Program
from fastrec.rows import take_rows
from fastrec.techniques import QuantizeLinears, QuantizeTables

from .zoo import ZOO, Entry
from .zoo.programs import captured as captured_of


class Function(nn.Module):
    """A function of tensors as a model."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


class Sizes(fx.Interpreter):
    """Bytes of each node's tensors in a run."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        tensors = result if isinstance(result, (tuple, list)) else [result]
        self.found[n.name] = sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
        return result


def captured(model: nn.Module, *batch: Tensor) -> Program:
    return capture(Program.read(model.eval(), batch))


def attention(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))


# torch's own counter leaves out the kernel that a CPU runs, and counts two operations where there is one multiply-add.
KERNELS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}


def counted(program: Program, tensors: list[Tensor]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        program.model(*tensors)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("entry", [e for e in ZOO if e.capturable], ids=lambda entry: entry.name)
def test_sizes_and_products_are_those_of_a_run(entry: Entry) -> None:
    program = captured_of(entry)
    assert isinstance(program.model, fx.GraphModule)
    rows = program.layout.rows
    count = 7 if rows is not None else 4
    order = torch.arange(count) % (rows or 1)
    tensors = take_rows(program.layout.features, program.batch, order) if rows else list(program.batch)
    jagged = any(feature.role == "values" for feature in program.layout.features)
    if jagged:  # every row has the same number of values then, as counting takes for granted
        order = torch.zeros(count, dtype=torch.int64)
        program = replace(program, batch=tuple(take_rows(program.layout.features, program.batch, order[:1])))
        program = replace(program, layout=replace(program.layout, rows=1))
        tensors = take_rows(program.layout.features, program.batch, order)
    sizes = Sizes(program.model)
    with torch.no_grad():
        sizes.run(*tensors)
    for node, found in costs(program, count):
        assert found.bytes >= sizes.found[node.name], node.format_node()
        if not found.multiply_adds and not found.lookups:
            assert found.bytes == sizes.found[node.name], node.format_node()
    assert cost(program, count).multiply_adds == counted(program, tensors)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x: torch.einsum("ni,ij,nj->n", x, torch.ones(6, 6), x), [(5, 6)]),
        (lambda x: torch.einsum("n...d,dh", x, torch.ones(6, 4)), [(5, 3, 6)]),
        (lambda x: torch.einsum("nfd, ngd -> nfg", x, x), [(5, 3, 6)]),
        (lambda x: torch.tensordot(x, torch.ones(3, 6, 4), dims=2), [(5, 3, 6)]),
        (lambda x: torch.addmm(torch.ones(4), x, torch.ones(6, 4)), [(5, 6)]),
        (lambda x, y: torch.baddbmm(torch.ones(1, 1, 1), x, y), [(5, 3, 6), (5, 6, 2)]),
        (lambda x: F.conv1d(x, torch.ones(8, 2, 3), groups=2), [(5, 4, 9)]),
        (lambda x: F.conv2d(x, torch.ones(8, 4, 3, 2), stride=2, padding=1), [(5, 4, 9, 7)]),
        (lambda x: F.conv_transpose1d(x, torch.ones(4, 8, 3), stride=2), [(5, 4, 9)]),
        (lambda x: F.scaled_dot_product_attention(x, x[..., :4, :], x[..., :4, :]), [(5, 2, 9, 8)]),
    ],
)
def test_products_of_every_form(function: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> None:
    batch = [torch.randn(shape) for shape in shapes]
    program = captured(Function(function), *batch)
    expected = counted(program, batch)
    assert expected > 0 and cost(program, 5).multiply_adds == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x @ torch.ones(6), 5 * 6),
        (lambda x: F.bilinear(x, x, torch.ones(4, 6, 6)), 5 * 4 * 6 * 6),
        (lambda x: torch.einsum("ni,nj->nij", x, x), 0),
        (lambda x: torch.einsum("ni,ni,ni->n", x, x, x), 5 * 6),
    ],
)
def test_products_that_the_counter_does_not_know(function: Callable[..., Tensor], expected: int) -> None:
    assert cost(captured(Function(function), torch.randn(5, 6)), 5).multiply_adds == expected


def test_bytes_are_rows_looked_up_constants_once_and_results() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.bags = nn.Embedding(90, 8), nn.EmbeddingBag(90, 8, mode="sum")
            self.layer = nn.Linear(8, 8, bias=False)

        def forward(self, ids: Tensor) -> Tensor:
            one, several = self.table(ids[:, 0]), self.bags(ids)
            return self.layer(one) + self.layer(several)

    program = captured(Both(), torch.randint(90, (5, 3)))
    found = {node.name: one for node, one in costs(program, 10)}
    row, result = 8 * 4, 10 * 8 * 4
    assert found["embedding"] == Cost(0, 10 * row + result, 1, 10)
    assert found["embedding_bag"].lookups == 3 * 10 and found["embedding_bag"].bytes >= 3 * 10 * row + result
    assert found["linear"] == Cost(10 * 8 * 8, 8 * 8 * 4 + result, 1, 0)
    assert found["linear_1"] == Cost(10 * 8 * 8, result, 1, 0)  # the weight was read
    assert found["add"] == Cost(0, result, 1, 0)
    assert cost(program, 10) == sum(found.values(), Cost())


@pytest.mark.parametrize(("bits", "row"), [(16, 16), (8, 16), (4, 8)])
def test_bytes_of_quantised_rows_are_those_that_are_read(bits: Literal[16, 8, 4], row: int) -> None:
    program = captured(nn.Embedding(90, 8), torch.randint(90, (5,)))
    program = program.with_model(QuantizeTables(bits, least_bytes=0).apply(program).model)
    first, *_ = [one for _, one in costs(program, 10)]
    assert first == Cost(0, 10 * row + 10 * 8 * (2 if bits == 16 else 4), 1, 10)


def test_ids_may_index_a_table() -> None:
    table = nn.Parameter(torch.randn(90, 8))
    for read in (lambda ids: table[ids], lambda ids: table.index_select(0, ids)):
        model = Function(read)
        model.table = table
        program = captured(model, torch.randint(90, (5,)))
        assert cost(program, 10) == Cost(0, 2 * 10 * 8 * 4, 1, 10)


def test_what_has_one_row_is_the_request_s() -> None:
    class TwoTower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Linear(6, 4), nn.Linear(5, 4)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (self.user(user) * self.item(item)).sum(1)

    repeated = captured(TwoTower(), torch.randn(3, 6), torch.randn(3, 5))
    assert (per_candidate(repeated), per_request(repeated)) == (44.0, 0.0)
    once = captured(TwoTower(), torch.randn(1, 6), torch.randn(3, 5))
    assert (per_candidate(once), per_request(once)) == (20.0, 24.0)


def test_what_was_not_captured_is_refused() -> None:
    program = Program.read(nn.Linear(3, 2).eval(), torch.randn(4, 3))
    with pytest.raises(InputError, match="capture it first"):
        cost(program, 1)


def test_products_of_codes_are_counted_apart() -> None:
    tower = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    program = capture(Program.read(tower, torch.randn(64, 8)))
    assert cost(program, 10).of_codes == 0
    integers = program.with_model(QuantizeLinears(least=100).apply(program).model)
    found = cost(integers, 10)
    assert found.of_codes == 10 * 8 * 16 and found.multiply_adds == 10 * (8 * 16 + 16 * 2)
