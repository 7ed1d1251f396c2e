"""Columns as tensors in a model's own dtypes, nothing lost on the way, and rows that cannot be, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tables import Array

__all__ = ["Reasons", "dense", "gathered", "lists", "tensor_of"]

Reasons = dict[int, str]
"""What is wrong with a row, by its number; the first thing that is."""

_MISSING = "missing"
_NONE = ("NoneType", "NAType", "NaTType")


def tensor_of(
    values: Array, missing: Array | None, shape: tuple[int, ...], dtype: torch.dtype, bad: Reasons, exact: Array | None
) -> Tensor:  # fmt: skip
    """A column of n rows as a tensor (n, *shape), zeros in rows that are bad; `bad` is told of these.

    Whole numbers may become wider or narrower, and floats whole numbers, where the value stays what it is; floats are rounded to
    the model's, but not where `exact` (1, *shape) says so, as of ids. Rows of other sizes, nothing, texts and what is lost are bad.
    """
    given = values
    if values.dtype == object:
        given = gathered(values, lambda x: _of_size(x, shape), shape, bad)
    elif values.dtype.kind not in "iufb":
        bad.update(dict.fromkeys(range(len(values)), f"expected numbers, got {values.dtype}"))
        given = np.zeros((len(values), *shape))
    elif values[:1].size != np.prod(shape, dtype=int) and len(values):
        bad.update(dict.fromkeys(range(len(values)), _size_said(values[0], shape)))
        given = np.zeros((len(values), *shape))
    if missing is not None:
        bad.update({int(row): _MISSING for row in missing.nonzero()[0] if int(row) not in bad})
    given = given.reshape(len(given), *shape)
    made, lost = _cast(given, dtype, exact)
    if lost is not None:
        for row in np.unique(lost.nonzero()[0]):
            got = given[row].reshape(-1)[lost[row].reshape(-1)][0]
            if int(row) not in bad:
                whole = dtype.is_floating_point or not np.isnan(got)
                bad[int(row)] = f"got {got}, which {dtype} does not hold" if whole else _MISSING
    if bad:
        made[sorted(bad)] = 0
    return made


def gathered(
    values: Array, check: Callable[[Array], str | None], shape: tuple[int, ...], bad: Reasons
) -> Array:
    """An array of objects as one of numbers (n, *shape), zeros in rows that are bad: nothing, no numbers, or refused by `check`."""
    if (found := _even(values, shape)) is not None:
        return found
    rows: dict[int, Array] = {}
    for row, value in enumerate(values):
        found = dense(value)
        reason = (
            _MISSING if type(value).__name__ in _NONE
            else f"expected numbers, got {value!r:.40}" if found is None
            else check(found)
        )  # fmt: skip
        if reason is None and found is not None:
            rows[row] = found
        else:
            bad.setdefault(row, str(reason))
    kind = np.result_type(*{found.dtype for found in rows.values()}) if rows else np.dtype(np.int64)
    made = np.zeros((len(values), *shape), kind)
    for row, found in rows.items():
        made[row] = found.reshape(shape)
    return made


def lists(values: Array, shape: tuple[int, ...], bad: Reasons) -> list[Array]:
    """One array (L, *shape) for each row, L its own; empty where the row is nothing, no numbers, or of other sizes."""
    if values.dtype.kind in "iufb" and values.ndim == 1 + 1 + len(shape):
        return list(values)
    made = []
    for row, value in enumerate(values):
        found = None if type(value).__name__ in _NONE else dense(value)
        if found is not None and found.size == 0:
            found = found.reshape(0, *shape)
        fits = found is not None and found.ndim == 1 + len(shape) and found.shape[1:] == shape
        if not fits:
            missing = type(value).__name__ in _NONE or (isinstance(value, float) and np.isnan(value))
            said = (
                _MISSING
                if missing
                else f"expected a list of numbers{f' {shape}' if shape else ''}, got {value!r:.40}"
            )
            bad.setdefault(row, said)
        made.append(found if fits and found is not None else np.zeros((0, *shape), np.int64))
    return made


def dense(value: Any) -> Array | None:
    """Numbers of one row, however they are nested; None where they are none, or uneven."""
    try:
        found = np.asarray(value)
        if found.dtype == object and found.ndim and found.size:
            parts = [dense(part) for part in found]
            found = (
                np.stack([part for part in parts if part is not None])
                if None not in map(_kind, parts)
                else found
            )
    except ValueError:
        return None
    # An empty list has no type of its own.
    return found.astype(np.int64) if not found.size else found if found.dtype.kind in "iufb" else None


def _kind(part: Array | None) -> str | None:
    return None if part is None else part.dtype.kind


def _even(values: Array, shape: tuple[int, ...]) -> Array | None:
    """What most columns are: scalars, or lists of the size they should have, at the speed of numpy."""
    try:
        found = np.array(values.tolist()) if not shape else np.stack([np.asarray(x) for x in values])
    except (ValueError, TypeError):
        return None
    fits = found.dtype.kind in "iufb" and found.size == len(values) * int(np.prod(shape, dtype=int))
    return found.reshape(len(values), *shape) if fits and len(values) else None


def _of_size(found: Array, shape: tuple[int, ...]) -> str | None:
    return None if found.size == np.prod(shape, dtype=int) else _size_said(found, shape)


def _size_said(found: Array, shape: tuple[int, ...]) -> str:
    return f"got {found.size} numbers, expected {int(np.prod(shape, dtype=int))}" + (
        f", {shape}" if len(shape) > 1 else ""
    )


def _cast(given: Array, dtype: torch.dtype, exact: Array | None) -> tuple[Tensor, Array | None]:
    """The numbers in this dtype, and which of them are others there (None: none)."""
    # torch has no arithmetic for wide numbers without a sign.
    if given.dtype.kind == "u" and given.dtype.itemsize > 1:
        large = given > np.iinfo(np.int64).max if given.dtype.itemsize == 8 else None
        found, lost = _cast(given.astype(np.int64), dtype, exact)
        return found, lost if large is None or not large.any() else large | (False if lost is None else lost)
    source = torch.from_numpy(np.array(given, order="C"))
    if source.dtype == dtype:
        return source, None
    made = source.to(dtype)
    if dtype.is_floating_point:
        if source.is_floating_point():
            # What is infinite only here was too large.
            wrong = made.isinf() & source.isfinite()
            if exact is not None:
                wrong |= torch.from_numpy(exact) & (made.to(source.dtype) != source) & source.isfinite()
        else:
            wrong = torch.zeros_like(source, dtype=torch.bool)
            if exact is not None:
                wrong |= torch.from_numpy(exact) & (made.to(torch.int64) != source.to(torch.int64))
    elif source.is_floating_point():
        wrong = ~((made.to(source.dtype) == source) & (source.abs() <= 2**53))
    else:
        wrong = made.to(torch.int64) != source.to(torch.int64)
    return made, wrong.numpy() if bool(wrong.any()) else None
