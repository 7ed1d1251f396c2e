"""The features of one side of a call."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from fastrec.errors import InputError
from fastrec.inputs import Feature
from fastrec.serving.given import read_side

FEATURES = [
    Feature("batch.user.id", torch.int64, (4,), 0, "rows"),
    Feature("batch.user.age", torch.float32, (4,), 0, "rows"),
    Feature("batch.item.id", torch.int64, (4,), 0, "rows"),
    Feature("batch.items[0]", torch.int64, (4,), 0, "rows"),
]
IDS, AGES = torch.arange(4), torch.rand(4)


class User(NamedTuple):
    """A request's features by name."""

    id: torch.Tensor
    age: torch.Tensor


@pytest.mark.parametrize(
    "given",
    [
        (IDS, AGES),
        [IDS, AGES],
        {"batch.user.id": IDS, "age": AGES},
        {"user": {"age": AGES, "id": IDS}},
        {"batch": {"user": User(IDS, AGES)}},
        {"user": {"id": IDS.int(), "age": AGES}},
        {"user": {"id": IDS, "age": AGES.clone().requires_grad_()}},
    ],
)
def test_forms(given: Any) -> None:
    found = read_side(given, FEATURES, [0, 1], "request")
    assert list(found) == [0, 1] or list(found) == [1, 0]
    assert torch.equal(found[0], IDS) and torch.equal(found[1], AGES)
    assert found[0].dtype == torch.int64 and not found[1].requires_grad


def test_one_tensor_and_items_of_lists() -> None:
    assert read_side(IDS, FEATURES, [2], "candidates")[2] is not None
    assert torch.equal(read_side({"items": [IDS]}, FEATURES, [3], "candidates")[3], IDS)
    assert read_side({}, FEATURES, [], "request") == {} == read_side((), FEATURES, [], "request")


@pytest.mark.parametrize(
    ("given", "text", "feature"),
    [
        ({"age": AGES}, "missing feature 'batch.user.id'", "batch.user.id"),
        ({}, "got nothing", "batch.user.id"),
        ({"id": IDS, "age": AGES}, "may be any of batch.user.id, batch.item.id", "id"),
        (
            {"user": {"id": IDS, "age": AGES}, "item": {"id": IDS}},
            "'batch.item.id' is not of the request",
            "batch.item.id",
        ),
        ({"user": {"id": IDS, "age": AGES}, "batch.user.id": IDS}, "given twice", "batch.user.id"),
        ({"user": {"id": IDS, "age": AGES, "sex": IDS}}, "'user.sex' is none of", "user.sex"),
        ({"user": {"id": AGES, "age": AGES}}, "dtype torch.float32, expected torch.int64", "batch.user.id"),
        ({"user": {"id": IDS, "age": AGES.double()}}, "expected torch.float32", "batch.user.age"),
        ((IDS,), "2 features", ""),
        (IDS, "2 features", ""),
        ("user", "got str", ""),
        (None, "got NoneType", ""),
        (
            {"user": {"id": None, "age": AGES}},
            r"'batch\.user\.id' of the request: got None, expected a tensor",
            "batch.user.id",
        ),
        ({"user": {"id": [1, 2], "age": AGES}}, "got a list of 1, 2, expected a tensor", "batch.user.id"),
        ({"id": "abc", "age": AGES}, "got 'abc', expected a tensor", "batch.user.id"),
        ((None, AGES), "got 1 tensors: it was a tuple of None, a tensor", ""),
    ],
)
def test_what_does_not_fit(given: Any, text: str, feature: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        read_side(given, FEATURES, [0, 1], "request")
    assert caught.value.feature == feature
