"""Numbers of rows that a model does not answer."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from fastrec import InputError, compress
from fastrec.answered import answered
from fastrec.backends import Eager
from fastrec.journal import Journal
from fastrec.program import Program


class Squeezed(nn.Module):
    """At a single row its vectors lose a dimension, and what they are multiplied with has one more."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)

    def forward(self, ids: Tensor) -> Tensor:
        vectors = self.table(ids).squeeze()
        return torch.bmm(vectors, vectors.mT)


def journal() -> Journal:
    began = time.perf_counter()
    return Journal(began, began + 60)


def program(rows: int) -> Program:
    return Program.read(Squeezed().eval(), torch.randint(50, (rows, 4)), ())


def test_sizes_that_it_does_not_answer_are_noted() -> None:
    work = journal()
    assert answered(work, program(6), (1, 2, 100)) == (2, 100)
    (note,) = work.notes
    assert note.startswith("not measured at 1 rows, which the model does not answer: RuntimeError: ")


def test_none_that_it_answers() -> None:
    with pytest.raises(InputError, match=r"answers none of 1 rows .*; the example has 6"):
        answered(journal(), program(6), (1,))


def test_beyond_a_call_that_takes_long_none_is_tried() -> None:
    work = journal()
    work.deadline = work.began
    assert answered(work, program(6), (2, 1)) == (2, 1) and not work.notes


def test_the_others_are_served() -> None:
    model, ids = Squeezed().eval(), torch.randint(50, (6, 4))
    made = compress(model, ids, batch_sizes=(1, 6), seconds=1, backends=[Eager()], progress=False)
    assert [size.rows for size in made.report.sizes] in ([], [6])
    assert torch.allclose(made(ids), model(ids), atol=1e-5)
    assert any("does not answer" in note for note in made.report.notes)
