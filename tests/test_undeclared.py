"""Rows that agree by chance or by design are told of, and nothing is assumed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrec import compress
from fastrec.capture import capture
from fastrec.program import Program
from fastrec.techniques import Fuse
from fastrec.undeclared import advice


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(torch.cat([user, item], 1)))).squeeze(1)


def fused(program: Program) -> Program:
    return program.with_model(Fuse().apply(program).model)


def advice_of(model: nn.Module, *batch: Tensor) -> list[str]:
    plain = capture(Program.read(model.eval(), batch))
    return advice(plain, fused(plain), fused)


def noted(user: Tensor, item: Tensor) -> list[str]:
    return advice_of(Scores(), user, item)


def test_agreeing_rows_are_told_with_what_they_would_save() -> None:
    (note,) = noted(torch.ones(5, 6), torch.randn(5, 2))
    assert "agree in 'user';" in note
    # 6 of the 8 columns of the first layer are the user's: 32 * 8 + 32 and 32 * 2 + 32.
    assert note.endswith("288 multiply-adds per candidate would be 96")


def test_columns_are_told_by_number() -> None:
    user = torch.randn(5, 6)
    user[:, [1, 4]] = 0.5
    (note,) = noted(user, torch.randn(5, 2))
    assert "agree in 'user' columns 1, 4;" in note


def test_rows_that_differ_are_not() -> None:
    assert noted(torch.randn(5, 6), torch.randn(5, 2)) == []


class Masked(nn.Module):
    """The mean of what is there of a history."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 4)

    def forward(self, history: Tensor, there: Tensor) -> Tensor:
        weight = there[:, :, None].float()
        return (self.table(history) * weight).sum(1) / weight.sum(1).clamp(min=1)


def test_what_would_save_nothing_is_not() -> None:
    there = torch.arange(5)[:, None] < torch.arange(1, 7)  # the last place of every history is taken
    assert advice_of(Masked(), torch.randint(30, (5, 6)), there) == []


def test_the_report_has_the_note_and_nothing_is_assumed() -> None:
    model = Scores().eval()
    batch = (torch.ones(5, 6), torch.randn(5, 2))
    fast = compress(model, batch, batch_sizes=(1,), seconds=1, backends=[], progress=False)
    assert any("agree in 'user'" in note for note in fast.report.notes)
    other = (torch.randn(5, 6), torch.randn(5, 2))
    torch.testing.assert_close(fast(*other), model(*other).detach())
