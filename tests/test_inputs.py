"""Foreign batches: flattened, and refused with the feature's name."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrec import InputError
from fastrec.inputs import batch_call, read_layout

X, Y = torch.arange(3), torch.arange(6.0).reshape(3, 2)


def positional(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    return a + b * scale


def single(batch: Any) -> Any:
    return batch


@pytest.mark.parametrize(
    ("function", "batch", "args", "names"),
    [
        (positional, (X, Y), 2, []),
        (positional, {"a": X, "b": Y}, 0, ["a", "b"]),
        (positional, {"b": Y, "a": X, "scale": 2.0}, 0, ["b", "a", "scale"]),
        (positional, OrderedDict(a=X, b=Y), 0, ["a", "b"]),
        (positional, UserDict(a=X, b=Y), 0, ["a", "b"]),
        (single, UserDict(a=X, b=Y), 1, []),
        (single, {"a": X, "b": Y}, 1, []),
        (single, (X, Y), 1, []),
        (single, X, 1, []),
    ],
)
def test_how_a_batch_is_given(function: Any, batch: Any, args: int, names: list[str]) -> None:
    given, named = batch_call(function, batch)
    assert len(given) == args and list(named) == names


def test_named_and_positional_calls_are_one() -> None:
    layout, _ = read_layout(positional, {"a": X, "b": Y})
    assert all(
        a is b for a, b in zip(layout.flatten((X, Y), {}), layout.flatten((X,), {"b": Y}), strict=True)
    )


@pytest.mark.parametrize(
    ("args", "kwargs", "words", "feature"),
    [
        ((X,), {}, "missing feature 'b'", "b"),
        ((X, Y, 1.0), {}, "3 positional arguments", ""),
        ((), {"a": X, "b": Y, "c": X}, "unexpected feature 'c'", "c"),
        ((X,), {"a": X, "b": Y}, "given twice", "a"),
        ((X, [1.0, 2.0]), {}, "expected a tensor", "b"),
        ((), {"a": X, "b": Y, "scale": 3.0}, "unexpected feature 'scale'", "scale"),
    ],
)
def test_calls_that_do_not_fit(args: Any, kwargs: Any, words: str, feature: str) -> None:
    layout, _ = read_layout(positional, (X, Y))
    with pytest.raises(InputError, match=words) as caught:
        layout.flatten(args, kwargs)
    assert caught.value.feature == feature


def test_default_arguments_may_be_repeated() -> None:
    layout, _ = read_layout(positional, (X, Y))
    assert len(layout.flatten((), {"a": X, "b": Y, "scale": 1.0})) == 2


def test_nested_keys_are_named() -> None:
    layout, _ = read_layout(single, {"user": {"id": X}, "items": [X, Y]})
    assert [feature.name for feature in layout.features] == [
        "batch.user.id",
        "batch.items[0]",
        "batch.items[1]",
    ]
    with pytest.raises(InputError, match="missing 'id'") as caught:
        layout.flatten(({"user": {"age": X}, "items": [X, Y]},), {})
    assert caught.value.feature == "batch.user.id"
    # The order of a dict's keys is not part of the call.
    assert len(layout.flatten(({"items": [X, Y], "user": {"id": X}},), {})) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            None,
            r"one argument, NoneType, expected 2: 'a' \(a tensor\), 'b' \(a tensor\).*by position or by name",
        ),
        ("abc", "one argument, str 'abc', expected 2"),
        ({"a": X, "b": Y}, r"one argument, dict, .*model\(\*\*batch\)"),
        ([X, Y], r"one argument, list, .*model\(\*batch\)"),
    ],
)
def test_one_thing_in_place_of_all_arguments_is_no_missing_feature(given: Any, words: str) -> None:
    layout, _ = read_layout(positional, (X, Y))
    with pytest.raises(InputError, match=words):
        layout.flatten((given,), {})


def test_what_is_no_batch_is_shown_beside_what_is_expected() -> None:
    layout, _ = read_layout(single, {"user": {"id": X}, "items": [X, Y]})
    for given, got in ((None, "NoneType"), ("abc", "str 'abc'"), (X, "a tensor"), ([X], "list")):
        with pytest.raises(InputError, match=f"'batch': got {got}, expected a dict of 'user'"):
            layout.flatten(*layout.call_of(given))
    with pytest.raises(InputError, match=r"'batch\.user\.id': got int 3, expected a tensor"):
        layout.flatten(({"user": {"id": 3}, "items": [X, Y]},), {})
