"""The k best of many scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrec.retrieval.best_rows import best_rows


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_as_a_stable_sort(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 3000))
    values = data.draw(st.integers(1, 2000))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    scores = torch.randint(values, (size,), generator=generator).to(
        data.draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64]))
    )
    if data.draw(st.booleans()):
        scores = -scores
    k = data.draw(st.integers(1, size))
    expected = scores.sort(descending=True, stable=True).indices
    assert torch.equal(best_rows(scores, k), expected[:k])


@pytest.mark.parametrize("size", [5, 5000])
def test_those_just_below_come_after(size: int) -> None:
    scores = torch.arange(size).float()
    assert best_rows(scores, 2, within=2.0).tolist() == [size - 1, size - 2, size - 3, size - 4]
    assert best_rows(scores, 2, within=0.5).tolist() == [size - 1, size - 2]


@pytest.mark.parametrize("size", [6, 6000])
def test_what_is_no_number_or_infinite(size: int) -> None:
    scores = torch.randn(size, generator=torch.Generator().manual_seed(0))
    scores[[1, 4]] = torch.nan
    scores[2], scores[3] = torch.inf, -torch.inf
    assert best_rows(scores, 3).tolist() == [1, 4, 2] == best_rows(scores, 3, within=1e-6).tolist()
    assert best_rows(scores, size).tolist()[-1] == 3
    assert best_rows(torch.full((size,), -torch.inf), 4).tolist() == [0, 1, 2, 3]
