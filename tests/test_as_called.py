"""Flat answers in the caller's form, request by request."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrec.as_called import AsCalled
from fastrec.declared import read_program
from fastrec.program import Program
from fastrec.request import Once


class Meeting(nn.Module):
    def forward(self, user: Tensor, item: Tensor) -> dict[str, Tensor]:
        return {"score": (user * item).sum(1), "first": item[:, 0]}


def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"user": torch.randn(3, 2)[torch.tensor([0, 1, 0, 2, 1])], "item": torch.randn(5, 2)}


def test_the_callers_form_comes_back() -> None:
    program = Program.read(Meeting(), batch())
    answer = AsCalled(program, Once(program.layout.features), lambda flat: program.run(flat)[0])(**batch())
    assert torch.equal(answer["score"], Meeting()(**batch())["score"])


def test_no_rows_are_an_answer_of_no_rows() -> None:
    program = read_program(Meeting(), batch(), (), ["user"])
    once = Once(program.layout.features)
    empty = {name: tensor[:0] for name, tensor in batch().items()}
    answer = AsCalled(program, once, lambda flat: program.run(once.all(flat))[0])(**empty)
    assert answer["score"].shape == (0,)


def test_each_request_is_run_by_itself_and_rows_keep_their_order() -> None:
    program = read_program(Meeting(), batch(), (), ["user"])
    once = Once(program.layout.features)
    seen: list[tuple[int, int]] = []

    def run(flat: list[Tensor]) -> list[Tensor]:
        seen.append((len(flat[0]), len(flat[1])))
        return program.run(once.all(flat))[0]

    answer = AsCalled(program, once, run)(**batch())
    assert seen == [(1, 2), (1, 2), (1, 1)]
    assert torch.allclose(answer["score"], Meeting()(**batch())["score"])
    assert torch.equal(answer["first"], batch()["item"][:, 0])
