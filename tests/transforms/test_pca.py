"""Vectors in their principal components, against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import PCA
from torch import nn

from fastrec.errors import InputError
from fastrec.transforms import PcaTransform


def rows(n: int = 60, d: int = 7, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rows whose directions vary by different amounts, off centre."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ np.diag(np.arange(1.0, d + 1)) @ rng.normal(size=(d, d)) + rng.normal(
        size=d
    )


def numpy_of(x: Any) -> Any:
    return x.detach().double().numpy() if isinstance(x, torch.Tensor) else x


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(1, 9), st.data())
def test_as_scikit_learn(n: int, d: int, data: st.DataObject) -> None:
    rank, x = data.draw(st.integers(1, min(n, d))), rows(n, d, n * 10 + d)
    mine, theirs = PcaTransform(rank=rank).fit(x), PCA(rank, svd_solver="full").fit(x)
    np.testing.assert_allclose(mine.explained_variance_ratio_, theirs.explained_variance_ratio_, atol=1e-9)
    np.testing.assert_allclose(mine.mean_, theirs.mean_, atol=1e-9)
    back = mine.inverse_transform(mine.transform(x))
    np.testing.assert_allclose(back, theirs.inverse_transform(theirs.transform(x)), atol=1e-6)
    assert (np.take_along_axis(mine.components_, np.abs(mine.components_).argmax(1)[:, None], 1) > 0).all()


@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_energy_is_the_fewest_components_that_hold_it(energy: float) -> None:
    mine, theirs = PcaTransform(energy=energy).fit(rows()), PCA(svd_solver="full").fit(rows())
    held = theirs.explained_variance_ratio_.cumsum()
    kept = len(mine.components_)
    assert held[kept - 1] >= energy - 1e-9 and (kept == 1 or held[kept - 2] < energy)


def test_weights_are_how_often_rows_occur() -> None:
    x, counts = rows(20), np.arange(20) % 4
    weighted, repeated = (
        PcaTransform(rank=3).fit(x, counts),
        PcaTransform(rank=3).fit(np.repeat(x, counts, 0)),
    )
    np.testing.assert_allclose(weighted.components_, repeated.components_, atol=1e-9)
    np.testing.assert_allclose(weighted.mean_, repeated.mean_, atol=1e-12)
    np.testing.assert_allclose(
        weighted.explained_variance_ratio_, repeated.explained_variance_ratio_, atol=1e-12
    )


def test_many_rows_are_read_in_parts() -> None:
    x = np.random.default_rng(0).normal(size=(70_000, 2)) @ np.diag([1.0, 3.0]) + 5
    theirs = PCA(2, svd_solver="full").fit(x)
    mine = PcaTransform(rank=2).fit(x)
    np.testing.assert_allclose(mine.explained_variance_ratio_, theirs.explained_variance_ratio_, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.astype(np.float32),
        torch.from_numpy,
        lambda x: torch.from_numpy(x).float().requires_grad_(),
        lambda x: torch.from_numpy(x).to(torch.bfloat16),
    ],
)
def test_what_comes_in_as_one_kind_goes_out_as_it(make: Callable[[Any], Any]) -> None:
    x = make(rows())
    pca = PcaTransform(rank=7)
    z = pca.fit_transform(x)
    back = pca.inverse_transform(z)
    assert type(z) is type(back) is type(x) and z.dtype == back.dtype == x.dtype
    near = 0.05 if x.dtype == torch.bfloat16 else 1e-4
    off, size = numpy_of(back - x), numpy_of(x)
    assert np.abs(off).max() <= near * np.abs(size).max()
    assert pca.transform(x[:0]).shape == (0, 7)
    # Of histories each event is a vector.
    assert pca.transform(x.reshape(6, 10, 7)).shape == (6, 10, 7)


def test_rows_that_do_not_vary_are_their_mean() -> None:
    x = np.full((5, 3), 2.0)
    pca = PcaTransform(energy=0.9).fit(x)
    assert pca.components_.shape == (1, 3) and pca.explained_variance_ratio_.tolist() == [0.0]
    assert np.allclose(pca.inverse_transform(pca.transform(x)), x)


@pytest.mark.parametrize("bias", [True, False])
def test_a_rebased_layer_reads_components(bias: bool) -> None:
    x = torch.from_numpy(rows()).float()
    linear = nn.Linear(7, 4, bias=bias).eval()
    state = torch.get_rng_state()
    whole = PcaTransform(rank=7).fit(x)
    layer = whole.rebase(linear)
    assert torch.equal(torch.get_rng_state(), state) and not layer.training
    scale = float(linear(x).detach().abs().max())
    torch.testing.assert_close(layer(whole.transform(x)), linear(x), atol=1e-6 * scale, rtol=1e-5)
    part = PcaTransform(rank=3).fit(x)
    near = linear(part.inverse_transform(part.transform(x)))
    torch.testing.assert_close(part.rebase(linear)(part.transform(x)), near, atol=1e-6 * scale, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"rank": 3}, {"energy": 0.9}])
def test_it_is_read_back_as_it_was_written(settings: dict[str, Any], tmp_path: Path) -> None:
    pca, path = PcaTransform(**settings).fit(rows()), tmp_path / "pca.safetensors"
    pca.save(path)
    pca.save(path)
    back = PcaTransform.load(path)
    assert repr(back) == repr(pca) and [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert np.array_equal(back.transform(rows()), pca.transform(rows()))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pca.safetensors"
    PcaTransform(rank=2).fit(rows()).save(path)
    tensors = load_file(path)
    head = {"fastrec": "PcaTransform", "schema": "1", "settings": '{"rank": 2, "energy": null}'}
    broken: list[tuple[dict[str, Any], dict[str, str], str]] = [
        (tensors, {}, "holds None"),
        (tensors, {**head, "fastrec": "DctTransform"}, "DctTransform"),
        (tensors, {**head, "settings": "{"}, "JSON"),
        (tensors, {**head, "settings": '{"rank": 2}'}, "settings"),
        (tensors, {**head, "settings": '{"rank": 3, "energy": null}'}, "shape"),
        ({**tensors, "mean": tensors["mean"][:3]}, head, "shape"),
        ({**tensors, "mean": tensors["mean"] * np.nan}, head, "nan"),
        ({**tensors, "components": 2 * tensors["components"]}, head, "orthonormal"),
        ({"mean": tensors["mean"]}, head, "expected float64"),
    ]
    for arrays, metadata, said in broken:
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path, metadata or None)
        with pytest.raises(InputError, match=said):
            PcaTransform.load(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="safetensors"):
        PcaTransform.load(path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: PcaTransform(), "rank=None"),
        (lambda: PcaTransform(rank=2, energy=0.5), "rank=2"),
        (lambda: PcaTransform(rank=0), "whole number"),
        (lambda: PcaTransform(energy=1.5), "share"),
        (lambda: PcaTransform(rank=8).fit(rows()), "7 or fewer"),
        (lambda: PcaTransform(rank=4).fit(rows(3)), "3 or fewer"),
        (lambda: PcaTransform(rank=4).fit(rows(5), np.array([1, 1, 1, 0, 0])), "3 rows"),
        (lambda: PcaTransform(rank=1).fit(np.where(rows() > 5, np.nan, 1.0)), "nan at"),
        (lambda: PcaTransform(rank=1).fit(rows()[0]), "expected \\(n, d\\)"),
        (lambda: PcaTransform(rank=1).fit([[1.0]]), "a list"),  # type: ignore[arg-type]
        (lambda: PcaTransform(rank=1).fit(rows(), np.ones(3)), "one for each row"),
        (lambda: PcaTransform(rank=1).fit(rows(), -np.ones(60)), "0 or more"),
        (lambda: PcaTransform(rank=1).transform(rows()), "not fitted"),
        (lambda: PcaTransform(rank=1).fit(rows()).transform(rows(4, 3)), "expected \\(..., 7\\)"),
        (lambda: PcaTransform(rank=1).fit(rows()).inverse_transform(rows()), "expected \\(..., 1\\)"),
        (lambda: PcaTransform(rank=1).fit(rows()).rebase(nn.Linear(5, 1)), "width 5"),
    ],
)
def test_what_does_not_fit_is_said(wrong: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        wrong()
