"""Sizes that a batch may have beside the example's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastrec.errors import IdOutOfRangeError
from fastrec.inputs import Feature
from fastrec.shapes import fits, misfit, refusal


def feature(role: Any, axis: int | None = None, request: Any = False) -> Feature:
    return Feature("x", torch.float32, (4, 3), axis, role, request=request)


@pytest.mark.parametrize(
    ("one", "shape", "rows", "right"),
    [
        (feature("rows", 0), (7, 3), 7, True),
        (feature("rows", 0), (7, 3), 8, False),
        (feature("rows", 0), (7, 3), None, True),
        (feature("rows", 0), (7, 4), None, False),
        (feature("rows", 1), (4, 7), 7, True),
        (feature("rows", 0), (7,), 7, False),
        (feature("rows", 0), (7, 3, 1), 7, False),
        (feature("rows", 0), (1, 3), 7, False),
        (feature("rows", 0, True), (1, 3), 7, True),
        (feature("rows", 0, True), (2, 3), 7, False),
        (feature("rows", 0, (1,)), (1, 3), 7, False),
        (feature("fixed"), (4, 3), 7, True),
        (feature("fixed"), (7, 3), 7, False),
        (feature("values"), (9, 3), 7, True),
        (feature("values"), (9, 4), 7, False),
        (feature("lengths"), (0, 3), 7, True),
    ],
)
def test_what_grows_has_as_many_rows_as_the_batch(
    one: Feature, shape: tuple[int, ...], rows: int | None, right: bool
) -> None:
    assert fits(one, torch.zeros(shape), rows) is right


def test_errors_name_the_feature_and_both_sizes() -> None:
    error = misfit(feature("rows", 0), torch.zeros(7, 4), ", and so on")
    assert str(error) == "feature 'x' is (7, 4), in the example it was (4, 3), and so on"
    assert error.feature == "x"
    said = refusal(
        [feature("fixed"), feature("rows", 0)], [torch.zeros(4, 3), torch.zeros(7, 2)], ValueError("no")
    )
    assert "batch: 'x' has 2 columns, expected 3 as in the example. It says: ValueError: no" in str(said)
    assert said.feature == "x"
    said = refusal([feature("rows", 0)], [torch.zeros(7, 3)], ValueError("no"))
    assert "sizes do not agree: 'x' (7, 3)" in str(said) and said.feature == ""


@pytest.mark.parametrize("given", [torch.zeros(7), torch.zeros(7, 3, 1)])
def test_what_has_no_columns_is_told_by_its_sizes(given: torch.Tensor) -> None:
    said = str(refusal([feature("rows", 0)], [given], ValueError("no")))
    assert f"'x' is {tuple(given.shape)}, in the example it was (4, 3)" in said


def test_a_lookup_that_fails_is_a_bad_id_unless_columns_are_missing() -> None:
    error = IndexError("index out of range in self")
    said = refusal([feature("fixed"), feature("rows", 0)], [torch.zeros(9, 3), torch.zeros(7, 3)], error)
    assert isinstance(said, IdOutOfRangeError) and "'x' (9, 3)" in str(said)
    assert not isinstance(refusal([feature("rows", 0)], [torch.zeros(7, 2)], error), IdOutOfRangeError)
