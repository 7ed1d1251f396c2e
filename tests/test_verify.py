"""Whether a session may stand for the original."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastrec.capture import capture
from fastrec.guards import Bounds
from fastrec.inputs import Feature
from fastrec.measure import Fidelity
from fastrec.program import Program
from fastrec.verify import checked_rows, neighbours, once_each, verify


def fresh(rows: int, index: int) -> list[Tensor]:
    return [torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows + index))]


def double(flat: list[Tensor]) -> list[Tensor]:
    return [flat[0] * 2]


RIGHT = once_each(double, fresh)


def test_equal_answers_are_a_fidelity() -> None:
    found = verify(RIGHT, double, fresh, [1, 2, 33], (0,))
    assert isinstance(found, Fidelity) and found.identical


def test_other_values_shapes_and_types_are_reasons() -> None:
    assert verify(RIGHT, lambda flat: [flat[0] * 2.1], fresh, [1, 2], (0,)) == verify(
        RIGHT, lambda flat: [flat[0] * 2.1], fresh, [1, 2], (0,)
    )
    assert "answers differ" in str(verify(RIGHT, lambda flat: [flat[0] * 2.1], fresh, [2], (0,)))
    assert "at 2 rows it answers (2, 1)" in str(
        verify(RIGHT, lambda flat: [flat[0][:, :1]], fresh, [2], (0,))
    )
    assert "torch.float64" in str(verify(RIGHT, lambda flat: [flat[0].double() * 2], fresh, [2], (0,)))


def test_small_numbers_of_rows_the_examples_and_one_that_is_served() -> None:
    captured = capture(Program.read(torch.nn.Linear(3, 1).eval(), torch.randn(7, 3)))
    assert checked_rows(captured, (1, 90, 500)) == [1, 2, 3, 7, 33, 90]


def scaled(flat: list[Tensor]) -> list[Tensor]:
    """One scale for the whole batch."""
    step = flat[0].abs().max() / 127
    return [((flat[0] / step).round() * step).sum(1)]


def by_row(flat: list[Tensor]) -> list[Tensor]:
    """One scale for each row."""
    step = flat[0].abs().amax(1, keepdim=True) / 127
    return [((flat[0] / step).round() * step).sum(1)]


def test_with_a_plain_form_a_session_may_stray_as_far_as_that_does() -> None:
    def coarse(flat: list[Tensor]) -> list[Tensor]:
        return [(flat[0] * 2).round(decimals=1)]

    def moved(flat: list[Tensor]) -> list[Tensor]:
        return [coarse(flat)[0] + 0.02]

    assert isinstance(verify(RIGHT, coarse, fresh, [1, 33], (0,)), str)
    found = verify(RIGHT, coarse, fresh, [1, 33], (0,), once_each(coarse, fresh))
    assert isinstance(found, Fidelity) and not found.exact
    assert isinstance(verify(RIGHT, moved, fresh, [1, 33], (0,), once_each(coarse, fresh)), Fidelity)
    far = verify(RIGHT, lambda flat: [coarse(flat)[0] + 0.2], fresh, [1, 33], (0,), once_each(coarse, fresh))
    assert "plain form" in str(far)


def test_one_scale_for_the_batch_is_seen_and_one_for_each_row_is_not() -> None:
    features = (Feature("x", torch.float32, (33, 3), 0, "rows"),)
    assert "depends on its neighbours" in str(neighbours(scaled, features, fresh(33, 0), (0,)))
    assert neighbours(double, features, fresh(33, 0), (0,)) == 0.0
    found = neighbours(by_row, features, fresh(33, 0), (0,))
    assert isinstance(found, float) and found < 1e-6


def test_the_last_bit_that_moves_is_told() -> None:
    def moving(flat: list[Tensor]) -> list[Tensor]:
        return [flat[0] + 1 + (2**-23 if len(flat[0]) == 1 else 0)]

    features = (Feature("x", torch.float32, (33, 3), 0, "rows"),)
    found = neighbours(moving, features, fresh(33, 0), (0,))
    assert isinstance(found, float) and 0 < found < 1e-6


def test_rounding_of_a_score_near_zero_is_no_neighbour() -> None:
    def rounded(flat: list[Tensor]) -> list[Tensor]:
        return [flat[0].sum(1) + (3e-8 if len(flat[0]) < 3 else 1e-8)]

    crowd = fresh(33, 0)
    crowd[0][0] = 0.0
    features = (Feature("x", torch.float32, (33, 3), 0, "rows"),)
    assert isinstance(neighbours(rounded, features, crowd, (0,)), float)


def test_numbers_of_rows_that_a_session_does_not_take_are_not_tried() -> None:
    def several(flat: list[Tensor]) -> list[Tensor]:
        assert len(flat[0]) > 1
        return by_row(flat)

    features = (Feature("x", torch.float32, (33, 3), 0, "rows"),)
    assert isinstance(neighbours(several, features, fresh(33, 0), (0,), exempt=(1,)), float)


def test_what_is_expected_is_run_once() -> None:
    calls: list[int] = []

    def counted(flat: list[Tensor]) -> list[Tensor]:
        calls.append(len(flat[0]))
        return double(flat)

    expected = once_each(counted, fresh)
    for _ in range(2):
        assert isinstance(verify(expected, double, fresh, [1, 33], (0,)), Fidelity)
    assert calls == [1] * 16 + [33]


def test_ids_that_lie_among_floats_stay_ids() -> None:
    table = torch.arange(10.0)
    packed = torch.stack([torch.arange(8.0), torch.linspace(0, 1, 8)], 1)
    feature = Feature("x", torch.float32, (8, 2), 0, "rows")
    seen: list[float] = []

    def session(flat: list[Tensor]) -> list[Tensor]:
        seen.append(float(flat[0][:, 1].max()))
        return [table[flat[0][:, 0].long()] + 0 * flat[0][:, 1].clamp(-1, 1)]

    bound = Bounds(np.array([[0.0, -np.inf]]), np.array([[10.0, np.inf]]))
    assert neighbours(session, [feature], [packed], [0], (), [bound]) == 0.0
    assert max(seen) > 1e29
