"""Stored vectors in their principal components, and the layer that reads those."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import InputError
from .arrays import Array, as_kind, finite, numbers
from .store import read, write

__all__ = ["PcaTransform"]

Floats = NDArray[np.float64]
_CHUNK = 1 << 16
# Of how much the components that a file holds may miss being orthonormal.
_ORTHONORMAL = 1e-6


class PcaTransform:
    """Keep vectors as their `rank` principal components, or as few as hold a share `energy` of the variance.

        z = C (x - mean)            x ~ mean + C^T z            C (rank, d), rows orthonormal

    C are the leading eigenvectors of the covariance of the rows, each counted as often as `weights` says: of all maps of that
    rank none has a smaller squared error, which is the variance left out, 1 - sum(explained_variance_ratio_) of the
    total. Each row of C has its largest entry positive. Calls are those of scikit-learn; arrays come back as arrays, tensors as tensors, in the type
    they had. After `fit`: `components_` (rank, d), `mean_` (d,), `explained_variance_ratio_` (rank,), all float64; ratios are 0 where
    rows do not vary at all.

    Raises `InputError` for settings, shapes and numbers that do not fit, and where it was not fitted. Cost: n d^2
    multiply-adds and d^2 numbers for n rows.

    Source: Pearson 1901; Eckart and Young 1936.

    Example:
        >>> import numpy as np
        >>> rows = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]])
        >>> pca = PcaTransform(rank=1)
        >>> np.allclose(pca.inverse_transform(pca.fit_transform(rows)), rows)
        True
    """

    components_: Floats
    mean_: Floats
    explained_variance_ratio_: Floats

    def __init__(self, *, rank: int | None = None, energy: float | None = None) -> None:
        if (rank is None) == (energy is None):
            raise InputError(
                f"PcaTransform takes rank=... or energy=..., got rank={rank!r}, energy={energy!r}: give one of them, the number of components "
                "to keep, as rank=8, or the share of the variance that they hold, as energy=0.99"
            )
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise InputError(f"PcaTransform(rank=...) takes a whole number from 1, got {rank!r:.80}")
        if energy is not None and (
            isinstance(energy, bool) or not isinstance(energy, (int, float)) or not 0 < energy <= 1
        ):
            raise InputError(f"PcaTransform(energy=...) takes a share in (0, 1], got {energy!r:.80}")
        self.rank, self.energy = rank, energy

    def __repr__(self) -> str:
        return f"PcaTransform({f'rank={self.rank}' if self.energy is None else f'energy={self.energy}'})"

    def fit(self, x: NDArray[Any] | Tensor, weights: NDArray[Any] | Tensor | None = None) -> Self:
        """Find the components of rows x (n, d); `weights` (n,) says how often each of them occurs."""
        rows = numbers(x, "x")
        if rows.ndim != 2 or not rows.size:
            raise InputError(f"x has shape {rows.shape}, expected (n, d) with some of both")
        finite(rows, "x")
        counts = _counts(weights, len(rows))
        most = min(int((counts > 0).sum()), rows.shape[1])
        if self.rank is not None and self.rank > most:
            raise InputError(
                f"rank={self.rank} is above what {int((counts > 0).sum())} rows of width {rows.shape[1]} have: "
                f"ask for {most} or fewer"
            )
        mean = sum((w @ part for part, w in _chunks(rows, counts)), np.zeros(rows.shape[1])) / counts.sum()
        covariance = np.zeros((rows.shape[1], rows.shape[1]))
        for part, w in _chunks(rows, counts):
            centred = part - mean
            covariance += (centred * w[:, None]).T @ centred
        values, vectors = np.linalg.eigh(covariance / counts.sum())
        values, vectors = values[::-1].clip(0), vectors.T[::-1]
        total = values.sum()
        ratios = values / total if total > 0 else np.zeros_like(values)
        rank = self.rank or _rank(ratios, self.energy or 1.0, most)
        kept = vectors[:rank]
        signs = np.sign(np.take_along_axis(kept, np.abs(kept).argmax(1)[:, None], 1))
        self.components_, self.mean_, self.explained_variance_ratio_ = (
            kept * signs,
            mean,
            ratios[:rank].copy(),
        )
        return self

    def transform(self, x: Array) -> Array:
        """The components z (..., rank) of vectors x (..., d)."""
        values = self._read(x, 1)
        z: Array = as_kind(x)((values - self.mean_) @ self.components_.T)
        return z

    def inverse_transform(self, z: Array) -> Array:
        """The vectors (..., d) that components z (..., rank) stand for."""
        values = self._read(z, 0)
        x: Array = as_kind(z)(values @ self.components_ + self.mean_)
        return x

    def fit_transform(self, x: Array, weights: NDArray[Any] | Tensor | None = None) -> Array:
        """The components of the rows they are found on."""
        return self.fit(x, weights).transform(x)

    def rebase(self, linear: nn.Linear) -> nn.Linear:
        """The layer that gives for z what `linear` gives for x = mean + C^T z; exact where rank is the width.

            W x + b  =  (W C^T) z + (b + W mean)          W (o, d) becomes (o, rank)

        So a feature store keeps z alone. `linear` stays as it is. Computed in float64, given in the layer's type.

        Example:
            >>> x = torch.arange(16.0).reshape(8, 2) ** 2
            >>> pca, layer = PcaTransform(rank=2).fit(x), torch.nn.Linear(2, 3)
            >>> torch.allclose(pca.rebase(layer)(pca.transform(x)), layer(x), atol=1e-3)
            True
        """
        self._fitted()
        if not isinstance(linear, nn.Linear):
            raise InputError(f"rebase takes a torch.nn.Linear, got a {type(linear).__name__}")
        rank, width = self.components_.shape
        if linear.in_features != width:
            raise InputError(f"the layer takes vectors of width {linear.in_features}, and these have {width}")
        old = linear.weight.detach()
        weight = old.double().cpu() @ torch.from_numpy(self.components_.T.copy())
        bias = old.double().cpu() @ torch.from_numpy(self.mean_)
        if linear.bias is not None:
            bias += linear.bias.detach().double().cpu()
        # On no device: a layer that is made draws numbers.
        made = nn.Linear(rank, linear.out_features, device="meta").train(linear.training)
        grad = linear.weight.requires_grad
        made.weight = nn.Parameter(weight.to(old.device, old.dtype), requires_grad=grad)
        made.bias = nn.Parameter(bias.to(old.device, old.dtype), requires_grad=grad)
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the settings and what was fitted as a safetensors file."""
        self._fitted()
        arrays = {
            "components": self.components_,
            "mean": self.mean_,
            "explained_variance_ratio": self.explained_variance_ratio_,
        }
        write(path, type(self).__name__, {"rank": self.rank, "energy": self.energy}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The transform that `save` wrote. Raises `InputError` for a file that holds anything else."""
        settings, arrays = read(path, cls.__name__)
        if set(settings) != {"rank", "energy"}:
            raise InputError(f"{path} has settings {sorted(settings)}, expected ['energy', 'rank']")
        made = cls(**settings)
        names = ("components", "mean", "explained_variance_ratio")
        if set(arrays) != set(names) or any(array.dtype != np.float64 for array in arrays.values()):
            raise InputError(f"{path} holds {sorted(arrays)}, expected float64 {sorted(names)}")
        components, mean, ratios = (arrays[name] for name in names)
        fits = (
            components.ndim == 2
            and mean.shape == components.shape[1:]
            and ratios.shape == components.shape[:1]
        )
        if not fits or (made.rank or len(components)) != len(components):
            raise InputError(
                f"{path} holds components of shape {components.shape}, a mean of {mean.shape} and ratios of {ratios.shape} "
                f"for {made!r}"
            )
        for name in names:
            finite(arrays[name], f"{path}: {name}")
        off = np.abs(components @ components.T - np.eye(len(components))).max(initial=0.0)
        if off > _ORTHONORMAL:
            raise InputError(f"{path} holds components that are {off:.1e} from orthonormal")
        made.components_, made.mean_, made.explained_variance_ratio_ = components, mean, ratios
        return made

    def _fitted(self) -> None:
        if not hasattr(self, "components_"):
            raise InputError(f"{self!r} is not fitted: call fit first")

    def _read(self, given: Any, axis: int) -> NDArray[np.floating[Any]]:
        self._fitted()
        name, width = ("z", "x")[axis], self.components_.shape[axis]
        values = numbers(given, name)
        if not values.ndim or values.shape[-1] != width:
            raise InputError(f"{name} has shape {values.shape}, expected (..., {width})")
        finite(values, name)
        return values


def _counts(weights: Any, rows: int) -> Floats:
    """How often each row occurs."""
    if weights is None:
        return np.ones(rows)
    counts = numbers(weights, "weights").astype(np.float64)
    if counts.shape != (rows,):
        raise InputError(f"weights has shape {counts.shape}, expected ({rows},), one for each row")
    finite(counts, "weights")
    if (counts < 0).any() or not counts.any():
        raise InputError(
            f"weights says how often rows occur: 0 or more, and not zero for all, got {counts.min()} at least"
        )
    return counts


def _chunks(rows: NDArray[np.floating[Any]], counts: Floats) -> Any:
    """Some rows at a time in float64, with their weights."""
    for start in range(0, len(rows), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield rows[part].astype(np.float64), counts[part]


def _rank(ratios: Floats, energy: float, most: int) -> int:
    """How few components hold this share of the variance, up to rounding."""
    held = np.cumsum(ratios)
    return min(int(np.searchsorted(held, energy * held[-1] * (1 - 1e-12))) + 1, most)
