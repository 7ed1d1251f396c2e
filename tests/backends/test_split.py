"""The split gives the graph's answer, moves every lookup it may, and leaves the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from fastrec.backends.split import Split, split_lookups, split_picks
from fastrec.graph import normalise
from fastrec.inputs import read_layout
from fastrec.program import Program

from .graphs import CASES, ROWS, Case, captured, program_of


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_parts_compose_to_the_graph(case: Case) -> None:
    program, _ = program_of(case)
    split = split_lookups(program.model)
    for rows in (1, 2, 7):
        batch = case.batch(rows, torch.Generator().manual_seed(rows))
        for got, expected in zip(split.dense(*split.lookups(*batch)), program.model(*batch), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_lookup_moves_and_tables_leave_the_dense_part(case: Case) -> None:
    program, _ = program_of(case)
    split = split_lookups(program.model)
    assert split.tables == case.lookups
    assert not any(tensor.shape[:1] == (ROWS,) for tensor in split.dense.parameters())


def test_tensors_are_shared_with_the_graph() -> None:
    program, model = program_of(CASES[1])
    split = split_lookups(program.model)
    known = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    parts = [*split.lookups.parameters(), *split.dense.parameters()]
    assert parts and all(tensor.data_ptr() in known for tensor in parts)


def test_the_graph_is_left_as_it_was() -> None:
    program, _ = program_of(CASES[1])
    before = program.model.code
    split_lookups(program.model)
    assert program.model.code == before


def test_rows_joined_by_nobody_else_are_handed_over_as_one() -> None:
    split = split_lookups(program_of(CASES[1])[0].model)
    # The rows stacked, their sum, the first-order weights joined, and the dense features.
    assert sum(node.op == "placeholder" for node in split.dense.graph.nodes) == 4


class Chained(nn.Module):
    """The second lookup's ids come from the first's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(ROWS, 4), nn.Embedding(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.second(self.first(ids).argmax(-1))


def test_a_lookup_by_computed_ids_stays() -> None:
    ids = torch.arange(6)
    program = captured(Chained(), (ids,))
    split = split_lookups(program.model)
    assert split.tables == 1
    assert torch.equal(split.dense(*split.lookups(ids))[0], program.model(ids)[0])


class Written(nn.Module):
    """The ids are changed in place before they are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 4)

    def forward(self, ids: Tensor) -> Tensor:
        shifted = ids + 1
        shifted.clamp_(max=ROWS - 1)
        return self.table(shifted)


def test_nothing_moves_past_an_in_place_write() -> None:
    split = split_lookups(captured(Written(), (torch.arange(5),)).model)
    assert split.tables == 0


class Picked(nn.Module):
    """Of one request's ids those that are not 0, for each candidate; or of the candidates those that are positive."""

    def __init__(self, *, of_request: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 4)
        self.of_request = of_request

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        given = ids[0] if self.of_request else x[:, 0]
        places = given.gt(0).nonzero().select(1, 0)
        rows = self.table(ids.index_select(1, places) if self.of_request else ids)
        weights = self.table.weight[0] * rows.sum((0, 1)) + places.sum()
        return x + weights


def picked(*, of_request: bool) -> tuple[Program, tuple[Tensor, Tensor]]:
    batch = torch.tensor([[3, 0, 5, 0]]), torch.randn(6, 4)
    sizes = ({}, {0: Dim.AUTO})
    model = _Tuple(Picked(of_request=of_request).eval())
    with torch.no_grad():
        exported = torch.export.export(model, batch, dynamic_shapes=(sizes,), strict=False)
    gm = normalise(exported.module(check_guards=False))
    return Program(gm, batch, read_layout(gm.forward, batch)[0]), batch


class _Tuple(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (self.model(*tensors),)


@pytest.mark.parametrize("split", [split_lookups, split_picks])
def test_what_is_picked_by_value_of_a_request_is_picked_in_front(
    split: Callable[[fx.GraphModule], Split],
) -> None:
    program, batch = picked(of_request=True)
    parts = split(program.model)
    assert parts.picks == 1 and parts.tables == (split is split_lookups)
    assert "nonzero" not in parts.dense.code and "index_select" not in parts.dense.code
    for ids in ([[3, 0, 5, 0]], [[1, 2, 3, 4]], [[0, 0, 0, 0]]):
        given = torch.tensor(ids), batch[1]
        assert torch.equal(parts.dense(*parts.lookups(*given))[0], program.model(*given)[0])


def test_what_is_picked_of_candidates_stays() -> None:
    program, batch = picked(of_request=False)
    parts = split_picks(program.model)
    assert parts.picks == 0 and "nonzero" in parts.dense.code
    assert torch.equal(parts.dense(*parts.lookups(*batch))[0], program.model(*batch)[0])
