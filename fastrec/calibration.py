"""Calibration batches: whether they are batches of the model, and enough for what is fitted to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from .errors import InputError
from .guards import read_guard
from .inputs import Feature
from .journal import Journal
from .program import Program
from .rows import count_rows
from .techniques import Technique

__all__ = ["apart", "as_example", "check_calibration"]

T = TypeVar("T")

_APART = 4
_THIN = 256  # rows below which ranges of activations are guesses


def as_example(features: Sequence[Feature], flat: Sequence[Tensor]) -> list[Tensor]:
    """The batch, ids in the example's type. Raises `InputError` where it is no batch of the example's kind, or has no rows."""
    rows = count_rows(features, flat)
    if rows == 0:
        raise InputError("it has no rows: leave it out")
    made = []
    for feature, tensor in zip(features, flat, strict=True):
        ids = _holds_ids(feature.dtype) and _holds_ids(tensor.dtype)
        expected = [
            rows if k == feature.axis and feature.role == "rows" else None if k == feature.growing else size
            for k, size in enumerate(feature.shape)
        ]
        got = list(tensor.shape)
        alike = len(got) == len(expected) and all(
            size in (None, have) for size, have in zip(expected, got, strict=True)
        )
        if not alike or not (ids or tensor.dtype is feature.dtype):
            raise InputError(
                f"feature {feature.name!r}: got {tensor.dtype} of shape {tuple(got)}, expected {feature.dtype} of shape "
                f"({', '.join('any' if size is None else str(size) for size in expected)}), as in the example",
                feature=feature.name,
            )
        made.append(tensor.to(feature.dtype))
    return made


def apart(batches: Sequence[T]) -> tuple[list[T], list[T]]:
    """The batches that techniques are fitted to, and those that say how far answers are off: every fourth. All are both where there are fewer."""
    if len(batches) < _APART:
        return list(batches), list(batches)
    held = list(batches[_APART - 1 :: _APART])
    return [batch for index, batch in enumerate(batches, 1) if index % _APART], held


def _holds_ids(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


def _one_row(features: Sequence[Feature], flats: Sequence[Sequence[Tensor]]) -> bool:
    """Whether all rows of all batches are the same; never of features that are cut by others."""
    roles = {feature.role for feature in features}
    if "rows" not in roles or not roles <= {"rows", "fixed"}:
        return False
    for place, feature in enumerate(features):
        first = flats[0][place]
        if feature.role == "rows" and feature.axis is not None:
            first = first.narrow(feature.axis, 0, 1)
        if not all(bool((flat[place] == first).all()) for flat in flats):
            return False
    return True


def check_calibration(
    work: Journal, asked: Program, calibration: Sequence[Sequence[Tensor]], techniques: Iterable[Technique]
) -> None:
    """Notes where it is thin for what is fitted to it.

    Raises `InputError` for ids that no table has, for numbers that are not finite, and where all rows are one.
    """
    guard = read_guard(asked)
    for flat in calibration:
        try:
            guard(flat)
        except InputError as error:
            raise type(error)(f"calibration: {error}", feature=error.feature, row=error.row) from error
    if calibration and _one_row(asked.layout.features, calibration):
        raise InputError(
            "calibration has one row, or one row again and again, which is no traffic: give some thousands of rows as they come, or leave it out"
        )
    flats = calibration or (asked.flat(asked.batch),)
    rows = sum(count_rows(asked.layout.features, flat) or 1 for flat in flats)
    if rows < _THIN and any(technique.fitted for technique in techniques):
        work.notes.append(
            f"what the recipe approximates was fitted to {rows} rows alone: give some thousands in calibration=..."
        )
