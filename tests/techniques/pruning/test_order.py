"""Units in the order in which they go, by each of the four scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastrec.techniques.pruning import order
from fastrec.techniques.pruning.order import By, Reading, by_activation, by_score

from .models import numbers


def places(units: int, columns: int = 1) -> Tensor:
    """Units one after the other, `columns` of each."""
    return torch.arange(units * columns).reshape(columns, units).t()


def reading(x: Tensor, weight: Tensor, slopes: Tensor | None = None) -> Reading:
    return Reading(x, weight, places(x.shape[1]), slopes)


def test_of_units_apart_those_go_first_that_vary_little_or_are_read_little() -> None:
    scale = torch.tensor([1.0, 0.1, 3.0, 1.0, 0.5])
    read = torch.tensor([[1.0, 1.0, 1.0, 0.02, 1.0]])
    found = by_activation([reading(numbers(4000, 5) * scale, read)])
    assert found.tolist() == [3, 1, 4, 0, 2]


def test_what_others_say_as_well_goes_before_what_nobody_else_says() -> None:
    x = numbers(2000, 4)
    # Unit 0 is the largest, and the sum of units 1 and 2; unit 3 is the smallest, and says its own.
    x[:, 0] = x[:, 1] + x[:, 2]
    x[:, 3] *= 0.5
    # Without one of the summands the other is read through the sum alone.
    first, second, *others = by_activation([reading(x, torch.ones(1, 4))]).tolist()
    assert {first, second} == {1, 2} and others == [3, 0]
    # What went was told to those that are left: of a pair of twins only one goes early.
    twins = numbers(2000, 3)
    twins[:, 1] = twins[:, 0]
    first, second, third = by_activation([reading(twins, torch.tensor([[1.0, 1.0, 0.5]]))]).tolist()
    assert first in (0, 1) and second == 2 and third in (0, 1)


def test_units_that_never_vary_go_first() -> None:
    x = numbers(500, 4)
    x[:, 2] = 7.0
    assert by_activation([reading(x, torch.tensor([[0.5, 0.5, 9.0, 0.5]]))])[0] == 2


def test_where_nothing_varies_weights_decide() -> None:
    found = by_activation([reading(numbers(1, 3), torch.tensor([[2.0, 1.0, 3.0]]))])
    assert found.tolist() == [1, 0, 2]


def test_fewer_rows_than_columns_give_an_order_all_the_same() -> None:
    found = by_activation(
        [reading(numbers(5, 40), torch.randn(3, 40, generator=torch.Generator().manual_seed(0)))]
    )
    assert sorted(found.tolist()) == list(range(40))


def test_all_maps_that_read_a_unit_count() -> None:
    x = numbers(2000, 3)
    alone = reading(x, torch.tensor([[0.1, 0.5, 1.0]]))
    other = reading(x, torch.tensor([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0]]))
    assert by_activation([alone]).tolist() == [0, 1, 2]
    assert by_activation([alone, other]).tolist() == [1, 2, 0]


def test_all_columns_of_a_unit_count() -> None:
    x = numbers(2000, 6)
    # Unit j is at columns j and 3 + j.
    found = by_activation([Reading(x, torch.tensor([[0.1, 0.2, 1.0, 3.0, 0.2, 1.0]]), places(3, 2))])
    assert found.tolist() == [1, 2, 0]


def test_many_units_go_in_steps_and_wide_maps_without_correlations(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = numbers(300, 30), torch.arange(1.0, 31.0)[None]
    monkeypatch.setattr(order, "_STEPS", 4)
    steps = by_activation([reading(x, weight)]).tolist()
    assert sorted(steps) == list(range(30)) and set(steps[:8]) == set(range(8))
    monkeypatch.setattr(order, "_WIDE", 10)
    assert by_activation([reading(x / x.std(0), weight)]).tolist() == list(range(30))


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        # |w_j| |v_j|: 1 2, 3 1, 2 4.
        ("magnitude", [0, 1, 2]),
        # E|g x|: column 0 often a little, 1 seldom much, 2 never.
        ("taylor", [2, 1, 0]),
        # E (g x)^2: what is seldom much weighs more.
        ("fisher", [2, 0, 1]),
    ],
)
def test_scores(by: By, expected: list[int]) -> None:
    x = torch.tensor([[1.0, 0.0, 5.0], [-1.0, 0.0, -5.0], [1.0, 2.0, 5.0], [-1.0, -2.0, -5.0]]).repeat(10, 1)
    x[:, 1] *= (torch.arange(40) % 20 >= 18) * 4.0
    x[:, 1] -= x[:, 1].mean()
    slopes = torch.tensor([[1.0, 1.0, 0.0]]).expand(40, 3)
    writer = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]])
    found = by_score(by, [Reading(x, torch.tensor([[2.0, 1.0, 4.0]]), places(3), slopes)], [writer])
    assert found.tolist() == expected


def test_a_unit_that_never_varies_is_missed_by_no_score_of_slopes() -> None:
    x = numbers(50, 2)
    x[:, 0] = 100.0
    given = Reading(x, torch.ones(1, 2), places(2), torch.ones(50, 2))
    assert by_score("taylor", [given], []).tolist() == by_score("fisher", [given], []).tolist() == [0, 1]
