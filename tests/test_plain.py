"""Dataclasses to plain data and back, and the place an error names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrec.errors import InputError
from fastrec.plain import dumps, from_plain, loads, to_plain


@dataclass(frozen=True)
class Inner:
    rows: int
    p99: float | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    pair: tuple[int, str]
    inner: tuple[Inner, ...] = ()
    table: Mapping[str, float] | None = None
    flag: bool | int = False


OUTER = Outer("x", "a", (1, "é"), (Inner(1, 0.5), Inner(2)), {"k": 1.0}, True)
texts = st.text()
floats = st.floats(allow_nan=False, allow_infinity=False)
outers = st.builds(
    Outer,
    name=texts,
    kind=st.sampled_from(["a", "b"]),
    pair=st.tuples(st.integers(), texts),
    inner=st.lists(st.builds(Inner, rows=st.integers(), p99=st.none() | floats)).map(tuple),
    table=st.none() | st.dictionaries(texts, floats),
    flag=st.booleans() | st.integers(min_value=2),
)


@given(outers)
def test_round_trip(value: Outer) -> None:
    data = json.loads(dumps(to_plain(value, "value")))
    back = from_plain(Outer, data, "value")
    assert back == value
    assert type(back.flag) is type(value.flag)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": 3}, r"value\.name"),
        ({"kind": "c"}, r"value\.kind"),
        ({"pair": [1]}, r"value\.pair"),
        ({"pair": [True, "x"]}, r"value\.pair\[0\]"),
        ({"inner": [{"rows": 1}, {"rows": "2"}]}, r"value\.inner\[1\]\.rows"),
        ({"inner": [{"rows": 1, "p99": "slow"}]}, r"value\.inner\[0\]\.p99"),
        ({"inner": [{"rows": 1, "p99": True}]}, r"value\.inner\[0\]\.p99"),
        ({"inner": [{}]}, r"value\.inner\[0\] lacks \['rows'\]"),
        ({"inner": "text"}, r"value\.inner"),
        ({"inner": [3]}, r"value\.inner\[0\]"),
        ({"table": {"k": None}}, r"value\.table\.k"),
        ({"flag": "yes"}, r"value\.flag"),
        ({"extra": 1}, r"value has unknown names \['extra'\]"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(change: dict[str, Any], place: str) -> None:
    with pytest.raises(InputError, match=place):
        from_plain(Outer, {**to_plain(OUTER, "value"), **change}, "value")


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), {1: 2}, object(), Inner, {1, 2}]
)
def test_what_json_cannot_hold_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(InputError, match=r"value\.a\[1\]"):
        to_plain({"a": [0, value]}, "value")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schema": 1, "x": NaN}', '{"schema": 1, "x": -Infinity}', "[" * 100_000]
)
def test_loads_takes_strict_json_objects_only(text: str) -> None:
    with pytest.raises(InputError, match="thing"):
        loads(text, "thing", 1)


@pytest.mark.parametrize("schema", [None, 2, "1", True, [1]])
def test_another_schema_is_refused(schema: object) -> None:
    assert loads('{"schema": 1, "x": 2}', "thing", 1) == {"x": 2}
    with pytest.raises(InputError, match="thing has schema"):
        loads(json.dumps({"schema": schema}), "thing", 1)
