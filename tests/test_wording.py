"""Numbers and foreign names as people read them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrec.wording import amount, clean, count, duration, share, times


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.000 ns"),
        (5e-8, "50.0 ns"),
        (9.999e-4, "1.00 ms"),
        (0.99949, "999 ms"),
        (0.9999, "1.00 s"),
        (3600, "3,600 s"),
    ],
)
def test_durations_keep_three_figures_across_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1.00 KiB"), (1023 * 1024, "0.999 MiB"), (5 * 2**40, "5.00 TiB")],
)
def test_amounts(size: int, text: str) -> None:
    assert amount(size) == text


def test_a_speedup_just_below_1_does_not_read_as_1() -> None:
    assert times(0.999) == "0.999x"
    assert share(0.9999999) != share(1.0)
    assert count(0, "row") == "0 rows"


@given(st.text(max_size=400), st.integers(min_value=3, max_value=50))
def test_clean_names_are_short_single_lines_without_control_characters(name: str, limit: int) -> None:
    text = clean(name, limit)
    assert len(text) <= limit
    assert not any(unicodedata.category(c)[0] == "C" for c in text)
    assert text.splitlines() in ([text], [])
    assert clean(text, limit) == text


def test_clean_leaves_ordinary_names_alone_and_both_ends_of_long_ones() -> None:
    assert clean("model.emb.0.weight") == "model.emb.0.weight"
    assert clean("用户_id 🎬") == "用户_id 🎬"
    cut = clean("begin" + "x" * 10_000 + "end")
    assert cut.startswith("begin") and cut.endswith("end") and len(cut) == 80
    assert clean("a\u202eb\x00c\x1b[31m") == "abc[31m"
