"""Fidelity: what differs, by how much, and whether the order of scores is kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fastrec.errors import MeasurementError
from fastrec.measure.accuracy import fidelity

NAN, INF = float("nan"), float("inf")
SCORES = torch.linspace(-1, 1, 101)


def test_equal_outputs_are_identical() -> None:
    found = fidelity((SCORES, torch.arange(101)), (SCORES.clone(), torch.arange(101)))
    assert found.identical and found.exact and found.nonfinite_alike
    assert (found.rows, found.max_abs, found.differing) == (101, 0.0, 0)
    assert (found.max_relative_to_spread, found.rank_kept) == (0.0, 1.0)
    assert found.kendall_tau == pytest.approx(1.0)


def test_the_largest_difference_over_all_outputs_and_over_the_spread() -> None:
    other = SCORES.clone()
    other[3] += 0.25
    found = fidelity((SCORES, 100 * SCORES), (other, 100 * SCORES + 1.0))
    assert found.max_abs == pytest.approx(1.0, rel=1e-5)
    assert found.max_relative_to_spread == pytest.approx(0.25 / float(SCORES.std(correction=0)), rel=1e-5)
    assert not found.exact and not found.identical


@pytest.mark.parametrize(
    ("original", "fast", "exact"),
    [
        (SCORES, SCORES + 3e-6, True),
        (SCORES, SCORES + 3e-5, False),
        (1e4 * SCORES, 1e4 * SCORES + 1e-2, True),  # rounding grows with the size of the numbers
        (0.5 + 1e-3 * SCORES, 0.5 + 1e-3 * SCORES + 8e-6, False),  # 1 % of a small spread is no rounding
        (0.5 + 1e-8 * SCORES, 0.5 + 1e-8 * SCORES + 1.2e-7, True),  # one unit in the last place always is
        (SCORES.half(), (SCORES + 1e-3).half(), True),
        (SCORES.double(), SCORES.double() + 1e-3, False),
        (torch.arange(3), torch.tensor([0, 1, 3]), False),
    ],
)
def test_exact_means_up_to_float_rounding(original: Tensor, fast: Tensor, exact: bool) -> None:
    assert fidelity((original,), (fast,)).exact is exact


def test_integers_and_booleans_are_counted() -> None:
    found = fidelity(
        (torch.tensor([1, 2, 3]), torch.tensor([True, False])),
        (torch.tensor([1, 5, 6]), torch.tensor([True, True])),
    )
    assert found.differing == 3
    assert not found.exact
    assert found.max_relative_to_spread is None and found.rank_kept is None


@pytest.mark.parametrize(
    "other", [[0.0, 1.0, INF, -INF], [NAN, NAN, INF, -INF], [NAN, 1.0, -INF, -INF], [NAN, 1.0, 9.0, -INF]]
)
def test_nan_and_infinities_must_stand_alike(other: list[float]) -> None:
    original = torch.tensor([NAN, 1.0, INF, -INF])
    alike = fidelity((original,), (original.clone(),))
    assert alike.nonfinite_alike and alike.identical and alike.exact and alike.max_abs == 0.0
    found = fidelity((original,), (torch.tensor(other),))
    assert not found.nonfinite_alike and not found.exact and not found.identical
    assert found.max_abs == 0.0


def test_all_nan_on_one_side_is_not_exact() -> None:
    found = fidelity((torch.ones(3),), (torch.full((3,), NAN),))
    assert not found.exact and not found.nonfinite_alike


@pytest.mark.parametrize("fast", [(), (SCORES[:-1],), (SCORES[:, None],), (SCORES.double(),)])
def test_what_cannot_be_compared_is_refused(fast: tuple[Tensor, ...]) -> None:
    with pytest.raises(MeasurementError, match="output"):
        fidelity((SCORES,), fast)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (1, 1), (4, 1, 1), (3, 2, 2)])
def test_any_shape_goes(shape: tuple[int, ...]) -> None:
    value = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    found = fidelity((value,), (value,))
    assert found.identical
    assert found.rows == (shape[0] if shape else 1)


def test_constant_outputs_have_no_spread_and_no_order() -> None:
    found = fidelity((torch.full((9,), 0.1),), (torch.full((9,), 0.1) + 1e-7,))
    assert found.exact
    assert found.max_relative_to_spread is None and found.rank_kept is None and found.kendall_tau is None


def test_complex_and_sparse_outputs_are_compared_by_their_numbers() -> None:
    value = torch.complex(SCORES, SCORES)
    assert fidelity((value,), (value + 0.5j,)).max_abs == pytest.approx(0.5)
    assert fidelity((torch.eye(3).to_sparse(),), (2 * torch.eye(3).to_sparse(),)).max_abs == 1.0


def test_one_score_moved_from_bottom_to_top_costs_one_rank_where_it_passes_none_unharmed() -> None:
    moved = SCORES.clone()
    moved[0] = 2.0
    found = fidelity((SCORES,), (moved,))
    assert found.rank_kept == 0.0  # it passed everyone
    swapped = SCORES.clone()
    swapped[[4, 5]] = swapped[[5, 4]]
    found = fidelity((SCORES,), (swapped,))
    assert found.rank_kept == pytest.approx(99 / 101)
    assert found.kendall_tau == pytest.approx(stats.kendalltau(SCORES.numpy(), swapped.numpy()).statistic)


def test_near_ties_may_swap() -> None:
    original = torch.tensor([0.0, 1.0, 1.0 + 1e-6, 2.0])
    fast = torch.tensor([0.0, 1.0 + 1e-6, 1.0, 2.0])
    found = fidelity((original,), (fast,))
    assert found.rank_kept == 1.0
    assert found.kendall_tau == pytest.approx(1.0)


def test_wide_outputs_are_ranked_within_each_row() -> None:
    original = torch.stack([SCORES, SCORES])
    fast = torch.stack([SCORES, SCORES.flip(0)])
    found = fidelity((original,), (fast,))
    assert found.kendall_tau == pytest.approx(-1.0)
    assert found.rank_kept == pytest.approx(0.5)


def brute_force(s: list[float], t: list[float], near: float) -> float:
    kept = 0
    for i in range(len(s)):
        pairs = [(j, s[i] - s[j]) for j in range(len(s)) if abs(s[i] - s[j]) > near]
        kept += all((t[i] - t[j]) * gap > 0 for j, gap in pairs)
    return kept / len(s)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=12))
def test_rank_kept_is_what_comparing_every_pair_gives(pairs: list[tuple[int, int]]) -> None:
    s, t = ([float(p[k]) for p in pairs] for k in (0, 1))
    found = fidelity((torch.tensor(s),), (torch.tensor(t),))
    if len(set(s)) == 1:
        assert found.rank_kept is None
    else:
        assert found.rank_kept == pytest.approx(brute_force(s, t, 1e-4))
