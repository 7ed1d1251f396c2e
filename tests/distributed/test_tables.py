"""Tables of three forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from fastrec import InputError
from fastrec.distributed.tables import column, cut, form_of, joined, length, names, with_columns

LISTS = [[1, 2], [3, 4], [5, 6]]
ARROW = pa.table({"a": [1, None, 3], "even": LISTS, "odd": [[1], None, [2, 3]], "nested": [LISTS[:2]] * 3})
FORMS = {
    "arrow": ARROW,
    "batch": ARROW.to_batches()[0],
    "pandas": ARROW.to_pandas(),
    "arrays": {"a": np.array([1.0, np.nan, 3.0]), "even": LISTS, "odd": [[1], None, [2, 3]], "nested": [LISTS[:2]] * 3},
}  # fmt: skip
each = pytest.mark.parametrize("form", FORMS)


def test_nothing_is_taken_for_nothing_that_is_there() -> None:
    for table, expected in (
        (ARROW, [1, 0, 3]),
        (pd.DataFrame({"a": pd.array([1, None, 3], dtype="Int64")}), [1, 0, 3]),
    ):
        values, missing = column(table, "a")
        assert values.tolist() == expected and missing.tolist() == [False, True, False]  # type: ignore[union-attr]


@each
def test_lists_of_one_length_are_numbers_and_others_objects(form: str) -> None:
    table = FORMS[form]
    assert np.stack(list(column(table, "even")[0])).tolist() == LISTS
    odd, missing = column(table, "odd")
    assert odd.dtype == object and list(odd[2]) == [2, 3]
    assert odd[1] is None and (missing is None or missing.tolist() == [False, True, False])


def test_lists_of_arrow_are_not_walked_through_row_by_row() -> None:
    assert column(ARROW, "even")[0].dtype == np.int64
    assert column(ARROW, "nested")[0].shape == (3, 2, 2)
    assert column(ARROW.slice(1, 2), "even")[0].tolist() == LISTS[1:]
    assert column(pa.table({"a": pa.chunked_array([], pa.int64())}), "a")[0].shape == (0,)


@each
def test_columns_are_added_in_the_form_that_was_given(form: str) -> None:
    table = FORMS[form]
    added = {"one": np.arange(3.0), "two": np.arange(6, dtype=np.float32).reshape(3, 2)}
    made = with_columns(table, ["even"], added, {"reason": [None, "odd", None]})
    assert form_of(made) == form_of(table) and type(made) is type(table)
    assert names(made) == ["even", "one", "two", "reason"] and length(made) == 3
    assert list(column(made, "reason")[0]) == [None, "odd", None]
    assert np.stack(list(column(made, "two")[0])).tolist() == added["two"].tolist()


@each
def test_parts_come_together_as_what_they_are_of(form: str) -> None:
    table = FORMS[form]
    again = joined([cut(table, 0, 2), cut(table, 2, 3)])
    assert length(again) == 3
    assert list(column(again, "odd")[0][2]) == [2, 3]


def test_names_that_are_taken_or_not_there() -> None:
    with pytest.raises(InputError, match="'a' already"):
        with_columns(ARROW, None, {"a": np.zeros(3)}, {})
    with pytest.raises(InputError, match="no column 'b'"):
        with_columns(ARROW, ["b"], {}, {})


def test_what_is_no_table() -> None:
    with pytest.raises(InputError, match="got list"):
        form_of([1, 2])
    with pytest.raises(InputError, match="different numbers of rows"):
        length({"a": np.zeros(2), "b": np.zeros(3)})
