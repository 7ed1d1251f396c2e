"""Histories as their newest events and low frequencies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors.numpy import save_file

from fastrec.errors import InputError
from fastrec.transforms import DctTransform


def histories(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape) + 1.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 30), st.integers(0, 9), st.integers(1, 9))
def test_what_is_lost_is_what_is_dropped(length: int, recent: int, coefficients: int) -> None:
    x, dct = histories(3, length, 4), DctTransform(recent, coefficients)
    z = dct.transform(x)
    assert z.shape == (3, min(coefficients, max(length - recent, 0)) + min(recent, length), 4)
    back = dct.inverse_transform(z, length=length)
    assert back.shape == x.shape
    np.testing.assert_allclose(((back - x) ** 2).sum((1, 2)), dct.dropped_energy(x), atol=1e-9)
    newest = slice(max(length - recent, 0), None)
    assert np.array_equal(back[:, newest], x[:, newest])
    if length - recent <= coefficients:
        np.testing.assert_allclose(back, x, atol=1e-12)
    if length:
        np.testing.assert_allclose(dct.mean(z, length=length), x.mean(1), atol=1e-12)
    # One history by itself is the same.
    np.testing.assert_array_equal(dct.transform(x[1]), z[1])


def test_it_is_the_cosine_transform() -> None:
    x = histories(6, 1)
    k, t = np.arange(6)[:, None], np.arange(6)
    basis = np.sqrt(np.where(k, 2, 1) / 6) * np.cos(np.pi * k * (2 * t + 1) / 12)
    np.testing.assert_allclose(DctTransform(0, 6).transform(x), basis @ x, atol=1e-12)


def test_slow_changes_are_kept() -> None:
    slow = np.cos(np.linspace(0, 3, 64))[:, None]
    kept = DctTransform(8, 8)
    assert kept.dropped_energy(slow) < 1e-4 * (slow**2).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_tensors_stay_tensors(dtype: torch.dtype) -> None:
    x = torch.from_numpy(histories(2, 20, 3)).to(dtype)
    dct = DctTransform(4, 16)
    z = dct.transform(x)
    back = dct.inverse_transform(z, length=20)
    assert z.dtype == back.dtype == dct.mean(z, length=20).dtype == dtype
    torch.testing.assert_close(back, x, atol=0.01, rtol=0.01)


def test_it_is_read_back(tmp_path: Path) -> None:
    dct, path = DctTransform(3, 5), tmp_path / "dct.safetensors"
    dct.save(path)
    assert DctTransform.load(path) == dct
    head = {"fastrec": "DctTransform", "schema": "1", "settings": '{"recent": -1, "coefficients": 2}'}
    for arrays, settings_, said in [
        ({}, head, "from 0"),
        ({"x": np.ones(2)}, {**head, "settings": '{"recent": 1, "coefficients": 2}'}, "arrays"),
        ({}, {**head, "settings": '{"recent": 1}'}, "settings"),
        ({}, {**head, "settings": "[]"}, "mapping"),
    ]:
        save_file(arrays, path, settings_)
        with pytest.raises(InputError, match=said):
            DctTransform.load(path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: DctTransform(-1, 2), "from 0"),
        (lambda: DctTransform(2, 0), "from 1"),
        (lambda: DctTransform(2, 2).transform(histories(4)), "expected \\(T, d\\)"),
        (lambda: DctTransform(2, 2).transform(np.full((4, 2), np.nan)), "nan at"),
        (lambda: DctTransform(2, 2).inverse_transform(histories(4, 2), length=3), "keeps 3 of"),
        (lambda: DctTransform(2, 2).inverse_transform(histories(4, 2), length=-1), "from 0"),
        (lambda: DctTransform(2, 2).mean(histories(0, 2), length=0), "no mean"),
    ],
)
def test_what_does_not_fit_is_said(wrong: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        wrong()
