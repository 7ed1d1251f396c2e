"""The best of scores where some rows are left out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrec.serving.unseen import are_near, best_unseen, filled


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_as_a_stable_sort_of_the_others(data: st.DataObject) -> None:
    size, values = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 30))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64]))
    scores = torch.randint(values, (size,), generator=generator).to(dtype)
    odd = torch.randint(size, (data.draw(st.integers(0, size)),), generator=generator)
    scores[odd] = (
        data.draw(st.sampled_from([-torch.inf, torch.inf, torch.nan]))
        if dtype.is_floating_point
        else torch.iinfo(dtype).min
    )
    seen = torch.randint(size, (data.draw(st.integers(0, 2 * size)),), generator=generator)
    k, before = data.draw(st.integers(1, size)), scores.clone()
    best, rows = best_unseen(scores, data.draw(st.sampled_from([seen, seen.unique()])), k, 0.0)
    order = scores.sort(descending=True, stable=True).indices
    expected = order[~torch.isin(order, seen)][:k]
    assert torch.equal(rows, expected) and best.dtype == dtype
    torch.testing.assert_close(best, scores[expected], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(scores, before, rtol=0, atol=0, equal_nan=True)


def test_those_just_below_come_after_and_none_of_them_was_seen() -> None:
    scores = torch.arange(1000).float()
    best, rows = best_unseen(scores, torch.tensor([999, 997]), 2, 2.0)
    assert rows.tolist() == [998, 996, 995, 994] and best.tolist() == [998, 996, 995, 994]


@pytest.mark.parametrize("size", [5, 500])
def test_scores_that_are_near(size: int) -> None:
    scores = torch.arange(size).float().flip(0)
    assert are_near(scores, 1.5) and not are_near(scores, 0.5)
    scores[-1] = scores[-2]
    assert are_near(scores, 0.5)


def test_what_is_lacking_is_none() -> None:
    scores, rows = filled(torch.tensor([3, 2]), torch.tensor([7, 1]), 3)
    assert scores.tolist() == [3, 2, torch.iinfo(torch.int64).min] and rows.tolist() == [7, 1, -1]
    assert filled(torch.ones(1), torch.tensor([4]), 2)[0].tolist() == [1, -torch.inf]
