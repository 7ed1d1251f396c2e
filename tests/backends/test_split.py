"""The split gives the graph's answer, moves every lookup it may, and leaves the rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastrec.backends.split import split_lookups

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
    # The rows stacked, the first-order weights joined, and the dense features.
    assert sum(node.op == "placeholder" for node in split.dense.graph.nodes) == 3


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
