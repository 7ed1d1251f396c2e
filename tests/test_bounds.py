"""What ids may be, in the shape of the example and in others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastrec import IdOutOfRangeError, InputError
from fastrec.bounds import Bounds, refuse_id, refuse_number
from fastrec.inputs import Feature

ITEMS = Feature("items", torch.int64, (4,))


def whole(low: float, high: float, size: int = 4) -> Bounds:
    return Bounds(np.full(size, low), np.full(size, high))


@pytest.mark.parametrize("size", [1, 4, 9])
def test_one_range_for_all_holds_in_any_shape(size: int) -> None:
    refuse_id(ITEMS, whole(0, 50), torch.full((size,), 49))
    ids = torch.zeros(size, dtype=torch.int64)
    ids[-1] = 50
    with pytest.raises(
        IdOutOfRangeError, match=rf"'items', position {size - 1}: got id 50, expected 0 <= id < 50"
    ):
        refuse_id(ITEMS, whole(0, 50), ids, counted=False)


def test_a_range_for_each_place_says_nothing_of_other_shapes() -> None:
    places = Bounds(np.zeros(4), np.array([10.0, 20.0, np.inf, 10.0]))
    refuse_id(ITEMS, places, torch.full((9,), 99))
    with pytest.raises(IdOutOfRangeError, match="position 3"):
        refuse_id(ITEMS, places, torch.tensor([9, 19, 99, 10]), counted=False)


def test_rows_are_named_where_a_dimension_counts_them() -> None:
    matrix = Feature("x", torch.float32, (4, 3), 0, "rows")
    bad = torch.zeros(4, 3)
    bad[2, 1] = torch.nan
    with pytest.raises(InputError, match=r"^feature 'x', row 2, position 1: got nan, why$") as caught:
        refuse_number(matrix, bad, bad.isnan(), "why")
    assert caught.value.row == 2
    once = Feature("x", torch.float32, (1, 3))  # what all rows share has one
    with pytest.raises(InputError, match=r"^feature 'x', row 2, position 1: got nan, why$"):
        refuse_number(once, bad, bad.isnan(), "why")
