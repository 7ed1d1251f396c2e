"""Stored histories as their newest events and the low frequencies of the older ones."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .arrays import Array, Numbers, as_kind, finite, numbers
from .store import read, write

__all__ = ["DctTransform"]


@dataclass(frozen=True)
class DctTransform:
    """Keep of a history its newest `recent` events, and the older ones as `coefficients` of their cosine transform over time.

        z = [c_0, ..., c_{m-1}, x_{T-r}, ..., x_{T-1}]                  x (T, d) or (N, T, d), oldest first
        c_k = s_k sum_t x_t cos(pi k (2 t + 1) / (2 L)),  L = T - r,    s_0 = sqrt(1 / L), s_k = sqrt(2 / L)

    The transform (DCT-II) is orthonormal, so what is lost is what is dropped, exactly (Parseval):

        || x - inverse_transform(transform(x)) ||^2  =  sum_{k >= m} || c_k ||^2  =  dropped_energy(x)

    z has m + r rows, whatever T. Of L < m older events all L coefficients are kept, which loses nothing; T <= r events are kept as
    they are, and of none nothing is. So the inverse and the mean have to be told T. All histories of an array have one length: transform
    those of another by themselves, as padding counts as events. Arrays come back as arrays, tensors as tensors, in the type they had.

    Raises `InputError` for settings, shapes and numbers that do not fit. Cost: T d log T.

    Source: Ahmed, Natarajan and Rao 1974.

    Example:
        >>> history = np.arange(10.0)[:, None]
        >>> dct = DctTransform(recent=2, coefficients=3)
        >>> z = dct.transform(history)
        >>> z.shape, dct.mean(z, length=10).round(6).tolist()
        ((5, 1), [4.5])
        >>> lost = ((dct.inverse_transform(z, length=10) - history) ** 2).sum()
        >>> bool(np.isclose(lost, dct.dropped_energy(history)))
        True
    """

    recent: int
    coefficients: int

    def __post_init__(self) -> None:
        for name, value, least in (("recent", self.recent, 0), ("coefficients", self.coefficients, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(
                    f"DctTransform({name}=...) takes a whole number from {least}, got {value!r:.80}"
                )

    def rows(self, length: int) -> int:
        """How many rows a history of `length` events is kept in."""
        return min(self.coefficients, self._older(length)) + min(self.recent, length)

    def transform(self, x: Array) -> Array:
        """What is kept (..., rows, d) of histories (..., T, d)."""
        values = _read(x, "x")
        older, recent = self._split(values)
        z: Array = as_kind(x)(np.concatenate([_dct(older)[..., : self.coefficients, :], recent], -2))
        return z

    def inverse_transform(self, z: Array, *, length: int) -> Array:
        """The histories (..., length, d) that come nearest to what is kept of them."""
        kept: Numbers = self._kept(z, length)
        low, recent = self._parts(kept, length)
        older = self._older(length)
        spectrum: Numbers = np.zeros((*kept.shape[:-2], older, kept.shape[-1]), dtype=kept.dtype)
        spectrum[..., : low.shape[-2], :] = low
        x: Array = as_kind(z)(np.concatenate([_dct(spectrum, back=True), recent], -2))
        return x

    def dropped_energy(self, x: NDArray[Any] | Any) -> Any:
        """The squared error (...,) of each history, summed over its T d numbers, in float64."""
        older, _ = self._split(_read(x, "x").astype(np.float64))
        return (_dct(older)[..., self.coefficients :, :] ** 2).sum((-2, -1))

    def mean(self, z: Array, *, length: int) -> Array:
        """The mean (..., d) of all events, exact: c_0 sqrt(L) is the sum of the older ones."""
        if length == 0:
            raise InputError("a history of no events has no mean: length is 0")
        low, recent = self._parts(self._kept(z, length), length)
        total = recent.sum(-2)
        if low.shape[-2]:
            total = total + low[..., 0, :] * math.sqrt(self._older(length))
        mean: Array = as_kind(z)(total / length)
        return mean

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the settings as a safetensors file."""
        settings = {"recent": self.recent, "coefficients": self.coefficients}
        write(path, type(self).__name__, settings, {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The transform that `save` wrote. Raises `InputError` for a file that holds anything else."""
        settings, arrays = read(path, cls.__name__)
        if set(settings) != {"recent", "coefficients"} or arrays:
            raise InputError(
                f"{path} has settings {sorted(settings)} and arrays {sorted(arrays)}, expected "
                "['coefficients', 'recent'] and none"
            )
        return cls(**settings)

    def _older(self, length: int) -> int:
        return max(length - self.recent, 0)

    def _split(self, values: Numbers) -> tuple[Numbers, Numbers]:
        older = self._older(values.shape[-2])
        return values[..., :older, :], values[..., older:, :]

    def _kept(self, z: Any, length: int) -> Numbers:
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise InputError(f"length is the number of events, a whole number from 0, got {length!r:.80}")
        values = _read(z, "z")
        if values.shape[-2] != self.rows(length):
            raise InputError(
                f"z has {values.shape[-2]} rows, and {self} keeps {self.rows(length)} of a history of {length} events"
            )
        return values

    def _parts(self, values: Numbers, length: int) -> tuple[Numbers, Numbers]:
        low = min(self.coefficients, self._older(length))
        return values[..., :low, :], values[..., low:, :]


def _read(given: Any, name: str) -> Numbers:
    values = numbers(given, name)
    if values.ndim not in (2, 3):
        raise InputError(f"{name} has shape {values.shape}, expected (T, d) or (N, T, d)")
    finite(values, name)
    return values


def _dct(values: Numbers, *, back: bool = False) -> Numbers:
    """The orthonormal transform over time, or its inverse; nothing is made of no numbers."""
    from scipy.fft import dct, idct

    if not values.size:
        return values
    found: Numbers = (idct if back else dct)(values, type=2, norm="ortho", axis=-2)
    return found
