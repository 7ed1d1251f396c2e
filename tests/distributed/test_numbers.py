"""Numbers in a model's own dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastrec.distributed.numbers import Reasons, lists, tensor_of
from fastrec.distributed.tables import objects

NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "shape", "dtype", "good", "bad"),
    [
        (np.array([1, 2], np.int32), (), torch.int64, [1, 2], {}),
        (np.array([1, 2**40]), (), torch.int32, [1], {1: "got 1099511627776"}),
        (np.array([3, 2**64 - 1], np.uint64), (), torch.int64, [3], {1: "got 18446744073709551615"}),
        (np.array([1.0, NAN, 3.5]), (), torch.int64, [1], {1: "missing", 2: "got 3.5"}),
        (np.array([1.0, 2.0**60]), (), torch.int64, [1], {1: "got 1.15"}),
        (np.array([0.1, 1e300]), (), torch.float32, [np.float32(0.1)], {1: "got 1e\\+300"}),
        (np.array([np.inf]), (), torch.float32, [np.inf], {}),
        (np.array([0, 1, 2]), (), torch.bool, [False, True], {2: "got 2"}),
        (objects([4, None, "x", 5]), (), torch.int64, [4, 5], {1: "missing", 2: "got 'x'"}),
        (objects([[1, 2], [3], None, np.array([4, 5])]), (2,), torch.int64, [[1, 2], [4, 5]], {1: "got 1 numbers, expected 2", 2: "missing"}),
        (objects([[[1, 2], [3, 4]], [1, 2, 3, 4], [1]]), (2, 2), torch.float32, [[[1, 2], [3, 4]]] * 2, {2: "expected 4"}),
        (np.zeros((2, 3)), (2,), torch.int64, [], {0: "got 3 numbers", 1: "got 3 numbers"}),
        (np.array(["a"]), (), torch.int64, [], {0: "expected numbers"}),
        (np.zeros(0, object), (3,), torch.int64, [], {}),
    ],
)  # fmt: skip
def test_what_a_dtype_holds_stays_what_it_is_and_the_rest_is_named(
    values: Any, shape: tuple[int, ...], dtype: torch.dtype, good: list[Any], bad: dict[int, str]
) -> None:
    seen = Reasons()
    made = tensor_of(values, None, shape, dtype, seen, None)
    assert made.dtype == dtype and made.shape == (len(values), *shape)
    assert made[[row for row in range(len(values)) if row not in bad]].tolist() == good
    assert set(seen) == set(bad) and not made[sorted(bad)].any()
    for row, said in bad.items():
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(seen[row])


@pytest.mark.parametrize("kind", [np.int64, np.float64])
def test_ids_in_floats_are_not_rounded_to_other_ids(kind: type) -> None:
    values, seen = np.array([2**24 + 1, 2**24 + 2], kind), Reasons()
    tensor_of(values, None, (), torch.float32, seen, np.array([True, True]))
    assert list(seen) == [0]
    assert tensor_of(values, None, (), torch.float32, again := Reasons(), None)[0] == 2**24 and not again


def test_nothing_is_said_before_what_else_is_wrong() -> None:
    seen = Reasons()
    tensor_of(np.array([1, 0]), np.array([False, True]), (), torch.int64, seen, None)
    assert seen == {1: "missing"}


def test_lists_of_any_length() -> None:
    seen = Reasons()
    found = lists(objects([[1, 2, 3], [], None, "no", NAN, np.array([4.0])]), (), seen)
    assert [x.tolist() for x in found] == [[1, 2, 3], [], [], [], [], [4.0]]
    assert set(seen) == {2, 3, 4} and "list of numbers" in seen[3] and seen[2] == seen[4] == "missing"
    assert lists(objects([[[1, 2]], [1, 2]]), (2,), again := Reasons())[0].shape == (1, 2)
    assert set(again) == {1}
