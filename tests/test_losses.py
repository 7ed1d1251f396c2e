"""The account of each segment: its verdict, how the worst is found and named, and how it is said."""

from __future__ import annotations

import pytest

from fastrec.losses import Accuracy, by_table, of_segments, refusal, told, worst, worst_first
from fastrec.measure import Loss, SegmentLoss


def lost(
    segment: str, value: float, error: float = 1e-4, rows: int = 5000, rarest: int = 2000, metric: str = "auc"
) -> SegmentLoss:
    loss = Loss(metric, 0.8, 0.8 - value, value, error, rows, rarest)
    return SegmentLoss("popularity", segment, metric, rows, loss if rarest else None)


def test_each_segment_has_its_verdict() -> None:
    found = of_segments(
        [lost("1", 1e-3), lost("2", 0.1), lost("3", 1e-3, 1e-2), lost("4", 0.1, rarest=40), lost("5", 0, rarest=0)],
        {"auc": 2e-3},
    )  # fmt: skip
    assert [one.verdict for one in found] == [
        "certified",
        "exceeded",
        "not certifiable",
        "too few rows",
        "too few rows",
    ]
    assert [one.holds for one in found] == [True, False, False, False, False]
    # 5000 (1.6449 1e-2 / 2e-3)^2; so many rows that 100 have the rarer label; more than that for none.
    assert [one.needed for one in found] == [None, None, 338_213, 12_500, 500_000]
    assert found[4].value is None and "its 5,000 labels leave nothing to rank" in str(found[4])


def test_without_a_bound_all_is_told_and_nothing_refused() -> None:
    found = of_segments([lost("1", 0.5), lost("2", 0.5, rarest=40), lost("3", 0, rarest=0)], {"logloss": 0.0})
    assert [one.verdict for one in found] == ["measured", "too few rows", "too few rows"]
    assert all(one.holds for one in found) and not refusal(found)
    assert str(found[0]) == "auc of popularity 1: 0.80000 before, 0.30000 after, lost 0.5, at most 0.5 (95 %)"
    assert str(found[1]).endswith("too few rows: needs about 12,500 rows of it, got 5,000")


def test_what_is_exact_asks_for_no_rows() -> None:
    found = of_segments([lost("1", 1e-9), lost("2", 0, rarest=0)], {"auc": 0.0}, exact=True)
    assert all(one.verdict == "exact" and one.holds and one.needed is None for one in found)
    assert told(found) == ["what serves is exact in every segment"] and worst(found) is None


def test_a_segment_is_certified_at_its_own_bound_however_many_there_are() -> None:
    # 1e-3 + 1.6449 6e-4 < 2e-3: true of each alone, so of all.
    found = of_segments([lost(str(i), 1e-3, 6e-4) for i in range(50)], {"auc": 2e-3})
    assert {one.verdict for one in found} == {"certified"}
    # 2.2 standard errors beyond: clear of one alone, chance among fifty.
    one, many = 4.2e-3, [lost(str(i), 0.0, 1e-3) for i in range(49)]
    assert of_segments([lost("x", one, 1e-3)], {"auc": 2e-3})[0].verdict == "exceeded"
    among = of_segments([lost("x", one, 1e-3), *many], {"auc": 2e-3})[0]
    assert among.verdict == "not certifiable" and among.needed is None


def test_few_rows_of_a_label_exceed_nothing_and_take_nothing_from_the_others() -> None:
    few = [lost(str(i), 0.3, 0.0, rarest=1) for i in range(40)]
    found = of_segments([lost("x", 4.2e-3, 1e-3), *few], {"auc": 2e-3})
    assert found[0].verdict == "exceeded" and {one.verdict for one in found[1:]} == {"too few rows"}


def test_the_worst_is_named_with_what_it_takes() -> None:
    found = of_segments(
        [lost("head", 0.0), lost("tail", 0.1), lost("middle", 0.0, 5e-3), lost("unseen", 0.2, rarest=1)],
        {"auc": 2e-3},
    )
    assert [one.segment for one in worst_first(found)] == ["tail", "middle", "unseen", "head"]
    lowest = worst(found)
    assert lowest is not None and lowest.segment == "tail"
    said = refusal(found)
    assert said.startswith(
        "auc of popularity tail: 0.80000 before, 0.70000 after, lost 0.1, at most 0.1 (95 %)"
    )
    assert said.endswith(
        "0.002 allowed: exceeded; 2 more of 4 not certified: popularity middle, popularity unseen"
    )


def test_ten_small_segments_say_what_would_help() -> None:
    found = of_segments([lost(str(i), 0.0, 5e-3, 300, 140) for i in range(1, 11)], {"auc": 2e-3})
    said = refusal(found)
    assert "auc of popularity 1: " in said and "needs about 5,074 rows of it, got 300" in said
    assert "9 more of 10 not certified: popularity 2, popularity 3, popularity 4 and 6 others" in said
    assert said.endswith("more labelled rows, up to about 5,074 in a segment, or fewer and larger segments")


def test_rows_are_counted_by_what_was_lost_only_where_that_is_no_chance() -> None:
    def needed(value: float, error: float, rows: int) -> int | None:
        (found,) = of_segments([lost("x", value, error, rows)], {"auc": 2e-3})
        assert found.verdict == "not certifiable"
        return found.needed

    # Of 300 rows a loss and a gain say the same.
    assert needed(1.9e-3, 5e-3, 300) == needed(4e-3, 5e-3, 300) == needed(-3e-3, 5e-3, 300) == 5074
    assert needed(1e-3, 1e-3, 5000) == 13_529  # 5000 (1.6449 1e-3 / 1e-3)^2
    assert needed(1.999e-3, 1e-3, 5000) is None and needed(2.5e-3, 1e-3, 5000) is None


def test_nothing_allowed_takes_no_number_of_rows() -> None:
    found = of_segments([lost("x", 1e-5), lost("y", 1e-5, rarest=10)], {"auc": 0.0})
    assert [(one.verdict, one.needed) for one in found] == [
        ("not certifiable", None),
        ("too few rows", 50_000),
    ]


def test_the_short_form_is_short_and_says_what_it_leaves_out() -> None:
    losses = [lost(str(i), i * 1e-3, metric=m) for m in ("auc", "logloss") for i in range(1, 12)]
    found = of_segments(losses, {})
    assert [len(table) for table in by_table(found)] == [11, 11]
    lines = told(found)
    assert len(lines) == 8 and lines[0].startswith("  auc of popularity 11: ")
    assert lines[3] == lines[7] == "  and 8 segments more: see report.segments"
    assert len(told(found[:3])) == 3 and told(()) == []


@pytest.mark.parametrize("name", ["a\nb\x1b[31m", "x" * 10_000, ""])
def test_names_are_cleaned(name: str) -> None:
    (found,) = of_segments([lost(name, 0.1)], {"auc": 1e-3})
    assert len(str(found)) < 200 and not set("\n\x1b") & set(str(found))


def test_groups_that_say_nothing_are_told() -> None:
    loss = Loss("gauc", 0.7, 0.69, 0.01, 1e-3, 9000, 880, None, 880, 20)
    told = Accuracy.of(loss, 0.02)
    assert (told.groups, told.left_out, told.verdict) == (880, 20, "certified")
    assert str(told).startswith("gauc 0.70000 before, 0.69000 after over 880 groups, 20 left out: lost 0.01")
