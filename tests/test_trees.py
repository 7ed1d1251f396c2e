"""The structure of batches and answers."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastrec.trees import build, collect, describe, in_words, opaque, tensors_of

X, Y = torch.arange(3), torch.arange(6.0).reshape(3, 2)


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


@dataclass
class Record:
    a: Tensor
    b: list[Tensor]
    mode: str = "fast"


@pytest.mark.parametrize(
    "value",
    [
        X,
        (X, Y),
        [X, Y],
        {"a": X, 3: {"b": Y}},
        OrderedDict(a=X),
        UserDict(a=X, b=Y),
        Pair(X, Y),
        Record(X, [Y, X]),
        (X, None, 2.5, "word"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_container_goes_and_comes_back(value: Any) -> None:
    found: list[tuple[str, Tensor]] = []
    tree = describe(value, "batch", found)
    tensors = [tensor for _, tensor in found]
    again: list[Tensor] = []
    collect(tree, build(tree, tensors), "batch", again)
    assert all(a is b for a, b in zip(tensors, again, strict=True))
    assert type(build(tree, tensors)) is type(value)


def test_what_is_neither_a_tensor_nor_a_plain_value_is_named() -> None:
    value = {"a": X, "b": [object(), 1.0, None], "c": {Y.dtype}}
    assert list(opaque(describe(value, "batch", []))) == ["object", "set"]
    (only,) = tensors_of(value)
    assert only is X


def test_structures_in_words() -> None:
    value = {"id": X, "pair": Pair(X, Y), "rest": (None, [X], "fast"), "none": {}}
    assert in_words(describe(value, "batch", [])) == (
        "a dict of 'id' (a tensor), 'pair' (a Pair of 'a' (a tensor), 'b' (a tensor)), "
        "'rest' (a tuple of None, a list of a tensor, 'fast'), 'none' (a dict of nothing)"
    )
