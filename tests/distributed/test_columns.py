"""Features read from columns of tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from fastrec import InputError
from fastrec.distributed.columns import Columns
from fastrec.guards import Bounds
from fastrec.inputs import Feature, Layout, read_layout
from fastrec.rows import take_rows


def layout_for(*features: Feature) -> Layout:
    return Layout(features, tuple(f.name for f in features), len(features), ())


def columns_for(*features: Feature, wanted: Any = None, bounds: Any = None) -> Columns:
    return Columns(layout_for(*features), bounds or (None,) * len(features), wanted or {})


USER = Feature("batch.user", torch.int64, (4,), 0, "rows")
IDS = Feature("batch.ids", torch.int64, (4, 2), 0, "rows")


def test_names_are_whole_or_the_last_part() -> None:
    found = columns_for(USER, IDS)
    assert found.names() == ["user", "ids"]
    table = {"user": np.array([1, 2]), "batch.ids": np.array([[3, 4], [5, 6]]), "other": np.zeros(2)}
    (user, ids), bad = found.read(table)
    assert user.tolist() == [1, 2] and ids.tolist() == [[3, 4], [5, 6]] and not bad
    twins = columns_for(USER, replace(USER, name="item.user"))
    assert twins.names() == ["batch.user", "item.user"]


def test_a_matrix_from_one_column_for_each_of_its_own() -> None:
    found = columns_for(IDS, wanted={"batch.ids": ("a", "b")})
    frame = pd.DataFrame({"a": [1, 2, None], "b": ["x", 5, 6]})
    (ids,), bad = found.read(frame)
    assert ids[1].tolist() == [2, 5]
    assert bad[0][1] == "feature 'batch.ids', column 'b': expected numbers, got 'x'"
    assert bad[2] == ("batch.ids", "feature 'batch.ids', column 'a': missing")
    with pytest.raises(InputError, match=r"3 columns for feature 'batch\.ids', whose rows hold 2"):
        columns_for(IDS, wanted={"batch.ids": ("a", "b", "a")}).read(frame)


def test_what_is_asked_for_has_to_be_there() -> None:
    with pytest.raises(InputError, match=r"no column 'user' for feature 'batch.user'.*columns=") as caught:
        columns_for(USER).read({"users": np.zeros(1)})
    assert caught.value.feature == "batch.user"
    with pytest.raises(InputError, match=r"no feature 'usr', it has batch\.user"):
        columns_for(USER, wanted={"usr": "user"})


def test_rows_along_another_dimension() -> None:
    feature = Feature("x", torch.float32, (1, 4, 3), 1, "rows")
    (x,), _ = columns_for(feature).read({"x": np.arange(6.0).reshape(2, 3)})
    assert x.shape == (1, 2, 3) and x[0, 1].tolist() == [3, 4, 5]


def test_ids_in_a_float_matrix_are_exact_and_its_numbers_are_rounded() -> None:
    high = np.array([[np.inf, 2.0**30]])
    found = columns_for(
        Feature("x", torch.float32, (4, 2), 0, "rows"),
        bounds=[Bounds(np.where(high < 1e30, 0, -np.inf), high)],
    )
    (x,), bad = found.read({"x": np.array([[0.1, 5], [2.0**24 + 1, 7], [0, 2.0**24 + 1]])})
    assert x[0].tolist() == [np.float32(0.1), 5] and x[1].tolist() == [2**24, 7]
    assert set(bad) == {2}


@pytest.mark.parametrize("role", ["starts", "bounds", "lengths"])
def test_lists_that_something_cuts(role: Any) -> None:
    cutter = Feature("cut", torch.int32, (4,), None, role)
    values = Feature("items", torch.int64, (9,), None, "values", "cut")
    weights = Feature("weights", torch.float32, (9,), None, "values", "cut")
    found = columns_for(cutter, values, weights)
    assert found.names() == ["items", "weights"]
    table = {
        "items": [[1, 2], [3], None, [4], [], [5, 6], [7, 2.5], [8]],
        "weights": [[0.1, 0.2], [0.3, 0.4], [0.5], "no", [], [0.6, 0.7], [0.8, 0.9], [1.0]],
    }
    flat, bad = found.read(table)
    assert set(bad) == {1, 2, 3, 6}
    assert bad[1][1] == "feature 'weights': has 2 values, and 'items' 1"
    assert bad[6][1] == "feature 'items': got 2.5, which torch.int64 does not hold"
    cut, items, scales = take_rows(found.features, flat, torch.tensor([0, 4, 5, 7]))
    assert items.tolist() == [1, 2, 5, 6, 8]
    assert scales.tolist() == torch.tensor([0.1, 0.2, 0.6, 0.7, 1.0]).tolist()
    expected = {"starts": [0, 2, 2, 4], "bounds": [0, 2, 2, 4, 5], "lengths": [2, 0, 2, 1]}
    assert cut.tolist() == expected[role] and cut.dtype == torch.int32


class Jagged:
    """As libraries of sparse features have it: several lists for each row, under keys."""

    def __init__(self, keys: list[str], values: Tensor, lengths: Tensor) -> None:
        self._keys, self._values, self._lengths = keys, values, lengths

    def keys(self) -> list[str]:
        return self._keys

    def values(self) -> Tensor:
        return self._values

    def lengths(self) -> Tensor:
        return self._lengths


def test_lists_under_keys_are_a_column_each() -> None:
    given = Jagged(["films", "tags"], torch.arange(5), torch.tensor([1, 2, 2, 0]))
    layout, _ = read_layout(lambda sparse: sparse, (given,))
    features = tuple(
        replace(f, role="lengths", keys=2) if f.name.endswith("lengths") else replace(f, role="values", group="sparse.lengths")
        for f in layout.features
    )  # fmt: skip
    found = Columns(replace(layout, features=features), (None, None), {})
    assert found.names() == ["films", "tags"]
    flat, bad = found.read({"films": [[1], [2, 3], None], "tags": [[4, 5], [], [6]]})
    values, lengths = take_rows(found.features, flat, torch.tensor([0, 1]))
    assert set(bad) == {2}
    assert values.tolist() == [1, 2, 3, 4, 5] and lengths.tolist() == [1, 2, 2, 0]


def test_what_is_the_same_for_any_number_of_rows_is_a_column() -> None:
    found = columns_for(USER, Feature("temperature", torch.float32, (), None, "fixed"))
    flat, _ = found.read({"user": np.array([1, 2]), "temperature": np.array([0.5, 2.0])})
    assert found.fixed == {1} and flat[1].tolist() == [0.5, 2.0]
