"""Finding the dimension that counts rows, and taking rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastrec.program import Program
from fastrec.rows import alike, count_rows, take_rows

from .checks import call, flat
from .zoo import ZOO, Entry, make


@pytest.mark.parametrize("rows", [1, 2, 5, 33])
@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_rows_are_found_and_taken(entry: Entry, rows: int) -> None:
    if rows not in (1, 2, 5, 33):
        return
    model = make(entry)
    batch = entry.batch(rows, torch.Generator().manual_seed(rows))
    target = model if entry.entry == "forward" else getattr(model, entry.entry)
    program = Program.read(target, batch)
    layout = program.layout
    assert layout.rows == rows and layout.independent
    tensors = program.flat(batch)
    assert count_rows(layout.features, tensors) == rows
    order = torch.tensor([rows - 1, 0, 0])
    taken = take_rows(layout.features, tensors, order)
    expected = flat(call(target if entry.entry != "forward" else model, batch))
    for old, new, axis in zip(expected, program.run(taken)[0], layout.output_axes, strict=True):
        torch.testing.assert_close(
            new, old.index_select(axis, order) if axis is not None else old, rtol=1e-4, atol=1e-5
        )


def test_rows_that_see_each_other_are_noticed() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    layout = Program.read(Centred(), torch.randn(4, 3)).layout
    assert layout.rows == 4 and not layout.independent


def test_no_rows_at_all() -> None:
    class Total(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    assert Program.read(Total(), torch.randn(4, 3)).layout.rows is None


def test_a_context_beside_the_rows() -> None:
    class Context(nn.Module):
        def forward(self, x: Tensor, context: Tensor) -> Tensor:
            return x @ context

    layout = Program.read(Context(), (torch.randn(5, 5), torch.randn(5))).layout
    assert [feature.role for feature in layout.features] == ["rows", "fixed"]


@pytest.mark.parametrize("role", ["starts", "bounds", "lengths"])
def test_values_cut_in_every_way(role: str) -> None:
    class Cut(nn.Module):
        def forward(self, values: Tensor, cut: Tensor) -> Tensor:
            if role == "lengths":
                cut = cut.cumsum(0) - cut
            return nn.functional.embedding_bag(
                values,
                torch.arange(20.0).reshape(10, 2),
                cut,
                mode="sum",
                include_last_offset=role == "bounds",
            )

    lengths = torch.tensor([2, 0, 3, 1])
    ends = lengths.cumsum(0)
    cut = {"starts": ends - lengths, "bounds": torch.cat([ends.new_zeros(1), ends]), "lengths": lengths}[role]
    batch = (torch.tensor([1, 2, 3, 4, 5, 6]), cut)
    program = Program.read(Cut(), batch)
    assert [feature.role for feature in program.layout.features] == ["values", role]
    taken = take_rows(program.layout.features, list(batch), torch.tensor([2, 2, 1]))
    assert taken[0].tolist() == [3, 4, 5, 3, 4, 5]


def test_rows_that_hold_the_same_bytes_are_one_group_wherever_they_are() -> None:
    ids = torch.tensor([3, 3, 1, 3, 1])
    numbers = torch.tensor([[0.0, torch.nan]] * 2 + [[2.0, 5.0], [0.0, torch.nan], [2.0, 6.0]])
    found = alike([ids, numbers], 5)
    assert [rows.tolist() for rows in found] == [[0, 1, 3], [2], [4]]
    assert [rows.tolist() for rows in alike([numbers.t()[0], ids == 1], 5)] == [[0, 1, 3], [2, 4]]
    assert [rows.tolist() for rows in alike([], 3)] == [[0, 1, 2]]
    assert [rows.tolist() for rows in alike([ids[:0], numbers[:0]], 0)] == []
