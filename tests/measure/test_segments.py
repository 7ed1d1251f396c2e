"""Groupings of rows, and what is lost in each: counted over the segment's rows alone, many at once accused of nothing by chance."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from fastrec.errors import MeasurementError
from fastrec.measure import evaluator, newcomers, popularity
from fastrec.measure.loss import Loss, loss_of
from fastrec.measure.segments import beyond, read_segments


def zipf(rows: int, ids: int, seed: int) -> np.ndarray:
    return np.minimum(np.random.default_rng(seed).zipf(1.3, rows) - 1, ids - 1)


def test_parts_have_equal_shares_of_rows_and_the_popular_come_first() -> None:
    ids, seen = zipf(20_000, 5000, 0) % 3000 + 1, zipf(20_000, 5000, 1) % 3000 + 1
    told = popularity(ids, seen, parts=4)
    counts = Counter(seen.tolist())
    assert set(told) == {"1 (head)", "2", "3", "4 (tail)", "unseen"}
    by_part = {name: [counts[i] for i in ids[told == name].tolist()] for name in set(told)}
    assert set(by_part["unseen"]) == {0}
    for first, second in (("1 (head)", "2"), ("2", "3"), ("3", "4 (tail)")):
        assert min(by_part[first]) > max(by_part[second])
    assert len(by_part["4 (tail)"]) == pytest.approx(20_000 / 4, rel=0.2)
    assert (popularity(torch.from_numpy(ids), counts, parts=4) == told).all()
    assert (popularity([str(i) for i in ids], [str(i) for i in seen], parts=4) == told).all()


def test_deciles_are_the_default_and_ids_of_one_count_stay_together() -> None:
    told = popularity(np.arange(1000), np.repeat(np.arange(1000), np.arange(1, 1001)))
    assert sorted(Counter(told.tolist()).values()) == [100] * 10 and told[0] == "10 (tail)"
    assert set(popularity(range(10), range(20))) == {"1"}
    assert popularity([1] * 8 + [2, 3], {1: 9, 2: 4, 3: 1}).tolist() == ["1 (head)"] * 8 + ["2", "3 (tail)"]


def test_newcomers_are_those_that_training_had_not() -> None:
    assert newcomers(torch.tensor([3, 1, 3]), torch.tensor([1, 1, 2])).tolist() == ["new", "known", "new"]
    assert newcomers(["a", "b"], {"b": 4}).tolist() == ["new", "known"]
    assert newcomers([], [1]).tolist() == []
    large = np.array([2**60 + 1], dtype=np.uint64)
    assert newcomers(large, np.array([2**60, -1])).tolist() == ["new"]
    with pytest.raises(MeasurementError, match="64 bits"):
        newcomers([2**70], [1])


@pytest.mark.parametrize(
    "values",
    [
        [10, 2, 2, 10],
        ["part 10", "part 2", "part 2", "part 10"],
        np.array([10, 2, 2, 10], dtype=np.uint8),
        torch.tensor([[10], [2], [2], [10]]),
        np.array([10, 2, 2, 10], dtype=object),
    ],
)
def test_values_of_many_kinds_make_segments_in_natural_order(values: Any) -> None:
    first, second = read_segments({"g": values}, 4)
    assert first.name.endswith("2") and first.rows.tolist() == [1, 2]
    assert second.name.endswith("10") and second.rows.tolist() == [0, 3]


def test_booleans_and_several_groupings() -> None:
    found = read_segments({"b": [True, False, True], "a": ["x", "x", "x"]}, 3)
    assert [(one.grouping, one.name, one.rows.tolist()) for one in found] == [
        ("b", "False", [1]),
        ("b", "True", [0, 2]),
        ("a", "x", [0, 1, 2]),
    ]


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ({}, "mapping from names"),
        (["a", "b"], "mapping from names"),
        ({3: [1, 2]}, "mapping from names"),
        ({"g": [1, 2, 3]}, r"segments\['g'\] has 3 values for 2 labels"),
        ({"g": []}, r"segments\['g'\] has 0 values for 2 labels"),
        ({"g": [0.5, 0.7]}, "float64.*digitize"),
        ({"g": ["a", None]}, "row 1 has None"),
        ({"g": [[1, 2], [3, 4]]}, r"shape \(2, 2\)"),
        ({"g": [[1, 2], [3]]}, "one for each row"),
        ({"g": "ab"}, r"shape \(\)"),
    ],
)
def test_groupings_that_do_not_fit_say_so(segments: Any, words: str) -> None:
    with pytest.raises(MeasurementError, match=words):
        evaluator([torch.zeros(2, 1)], [0, 1], segments=segments)


def test_ids_are_no_grouping_and_kinds_must_agree() -> None:
    with pytest.raises(MeasurementError, match="1,001 different values"):
        read_segments({"user": range(1001)}, 1001)
    with pytest.raises(MeasurementError, match="both as integers"):
        newcomers(["1", "2"], [1, 2])
    with pytest.raises(MeasurementError, match="none of the ids"):
        popularity([1, 2], [3, 4])
    with pytest.raises(MeasurementError, match="parts is 0"):
        popularity([1, 2], [1], parts=0)


def test_losses_are_of_the_rows_of_the_segment() -> None:
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, 900), np.repeat(["a", "b", "c"], 300)
    labels[groups == "c"] = 1
    before = rng.uniform(0.01, 0.99, 900)
    after = np.where(groups == "b", rng.uniform(0.01, 0.99, 900), before)
    judge = evaluator([torch.zeros(900, 1)], labels, ["auc", "logloss"], segments={"g": groups})
    found = {(one.segment, one.metric): one for one in judge.by_segment(before, after)}
    assert [one.rows for one in found.values()] == [300] * 6
    same, moved = found["a", "auc"].loss, found["b", "logloss"].loss
    assert same is not None and same.value == 0.0
    rows = groups == "b"
    assert moved == loss_of("logloss", labels[rows], before[rows], after[rows]) and moved.value != 0
    # Of one label nothing can be ranked, and the log loss is still there.
    assert found["c", "auc"].loss is None
    alone = found["c", "logloss"].loss
    assert alone is not None and alone.few and alone.before == pytest.approx(-np.log(before[600:]).mean())


def test_one_row_has_a_log_loss() -> None:
    one = loss_of("logloss", np.array([1]), np.array([0.5]), np.array([0.25]))
    assert one.value == pytest.approx(np.log(2)) and one.error == 0.0 and one.few


def test_of_many_sound_segments_none_is_accused_by_chance() -> None:
    rng = np.random.default_rng(0)

    def accused(values: np.ndarray) -> list[bool]:
        losses = [Loss("auc", 0.8, 0.8, float(value), 1e-3, 9000, 4000) for value in values]
        return beyond(losses, [0.0] * len(losses))

    trials = [any(accused(rng.normal(0, 1e-3, 40))) for _ in range(400)]
    assert np.mean(trials) < 0.08  # one by one, 87 % of them would accuse some
    assert accused(np.array([0.0, 9e-3, 0.0])) == [False, True, False]
    # Holm's steps: the second has to be as far off as among two alone.
    assert accused(np.array([9e-3, 2.0e-3, 0.0])) == [True, True, False]
    assert accused(np.array([2.0e-3, 0.0, 0.0])) == [False] * 3


def test_what_is_sure_is_sure() -> None:
    sure = [Loss("auc", 0.8, 0.7, 0.1, 0.0, 900, 400), Loss("auc", 0.8, 0.8, 0.0, 0.0, 900, 400)]
    assert beyond(sure, [0.01, 0.0]) == [True, False]
    assert beyond([], []) == []
