"""Whether a session may stand for the original."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrec.capture import capture
from fastrec.measure import Fidelity
from fastrec.program import Program
from fastrec.verify import checked_rows, verify


def fresh(rows: int, index: int) -> list[Tensor]:
    return [torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows + index))]


def double(flat: list[Tensor]) -> list[Tensor]:
    return [flat[0] * 2]


def test_equal_answers_are_a_fidelity() -> None:
    found = verify(double, double, fresh, [1, 2, 33], (0,))
    assert isinstance(found, Fidelity) and found.identical


def test_other_values_shapes_and_types_are_reasons() -> None:
    assert verify(double, lambda flat: [flat[0] * 2.1], fresh, [1, 2], (0,)) == verify(
        double, lambda flat: [flat[0] * 2.1], fresh, [1, 2], (0,)
    )
    assert "answers differ" in str(verify(double, lambda flat: [flat[0] * 2.1], fresh, [2], (0,)))
    assert "at 2 rows it answers (2, 1)" in str(
        verify(double, lambda flat: [flat[0][:, :1]], fresh, [2], (0,))
    )
    assert "torch.float64" in str(verify(double, lambda flat: [flat[0].double() * 2], fresh, [2], (0,)))


def test_small_numbers_of_rows_the_examples_and_one_that_is_served() -> None:
    captured = capture(Program.read(torch.nn.Linear(3, 1).eval(), torch.randn(7, 3)))
    assert checked_rows(captured, (1, 90, 500)) == [1, 2, 3, 7, 33, 90]
