"""Widths of groups, by what the answers move and what is saved."""

from __future__ import annotations

import math

import pytest

from fastrec.techniques.pruning.shares import Map, levels, narrowed, work


@pytest.mark.parametrize("width", [2, 15, 16, 17, 31, 32, 33, 50, 100, 128, 200, 333, 512, 1000, 4096])
@pytest.mark.parametrize("step", [1, 2, 8, 16])
def test_levels_are_multiples_below_the_width_down_to_one_step(width: int, step: int) -> None:
    found = levels(width, step)
    assert all(level % step == 0 and 0 < level < width for level in found)
    assert found == sorted(set(found), reverse=True)
    assert found[-1:] == ([step] if width > step else []) and len(found) <= 2 * 8


MAPS = [Map(64, "a", [(None, 8)]), Map(64, "b", [("a", 8)]), Map(32, None, [("b", 8), ("a", 8), (None, 16)])]


def test_work_counts_rows_and_columns() -> None:
    full = {"a": 8, "b": 8}
    assert work(MAPS, full, full) == 160
    assert work(MAPS, full, {"a": 4, "b": 8}) == 32 + 32 + 32 * (8 + 4 + 16) / 32
    assert work(MAPS, full, {"a": 4, "b": 2}) == 32 + 8 + 32 * (2 + 4 + 16) / 32
    # Groups that are not looked at keep their width.
    assert work(MAPS, {"b": 8}, {"b": 4}) == 64 + 32 + 32 * (4 + 8 + 16) / 32


def test_no_more_than_the_share_is_left_where_that_can_be() -> None:
    full = {"a": 8, "b": 8}
    curves = {name: {6: 0.1, 4: 0.2, 2: 0.4} for name in full}
    for keep in (0.9, 0.7, 0.5, 0.3):
        kept = narrowed(MAPS, full, curves, keep)
        assert work(MAPS, full, kept) <= keep * 160
    assert narrowed(MAPS, full, curves, 1.0) == full
    assert narrowed(MAPS, full, curves, 0.01) == {"a": 2, "b": 2}


def test_the_one_goes_that_moves_the_answers_least_for_what_it_saves() -> None:
    full = {"a": 8, "b": 8}
    little, much = {4: 0.01, 2: 0.02}, {4: 0.5, 2: 0.9}
    assert narrowed(MAPS, full, {"a": little, "b": much}, 0.7)["b"] == 8
    assert narrowed(MAPS, full, {"a": much, "b": little}, 0.8)["a"] == 8


def test_groups_that_are_missed_alike_become_narrower_together() -> None:
    full = {"a": 16, "b": 16}
    maps = [Map(64, "a", [(None, 8)]), Map(64, "b", [(None, 8)])]
    nothing = {12: 0.0, 8: 0.0, 4: 0.0}
    assert narrowed(maps, full, {"a": nothing, "b": nothing}, 0.5) == {"a": 8, "b": 8}


def test_a_width_whose_answers_are_no_numbers_comes_last() -> None:
    full = {"a": 8, "b": 8}
    maps = [Map(64, "a", [(None, 8)]), Map(64, "b", [(None, 8)])]
    bad = {4: math.inf, 2: math.inf}
    assert narrowed(maps, full, {"a": bad, "b": {4: 0.9, 2: 2.0}}, 0.7) == {"a": 8, "b": 2}
