"""What the ids of one feature may be, and the errors for elements of a batch that are not as they have to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import IdOutOfRangeError, InputError
from .inputs import Feature

__all__ = ["EXACT", "Array", "Bounds", "array", "refuse_id", "refuse_number"]

Array = npt.NDArray[Any]

EXACT = {torch.float32: 2**24, torch.float64: 2**53, torch.float16: 2**11, torch.bfloat16: 2**8}
"""The largest whole number up to which a dtype holds every whole number."""


@dataclass(frozen=True)
class Bounds:
    """What the elements of one feature may be: `low <= x < high`, arrays that broadcast against a batch of it.

    Elements that are no ids have infinite bounds.
    """

    low: Array
    high: Array

    @property
    def uniform(self) -> bool:
        """Whether one range holds for every element."""
        return bool((self.low == self.low.flat[0]).all() and (self.high == self.high.flat[0]).all())

    def ends(self, shape: tuple[int, ...]) -> tuple[Array, Array] | None:
        """The ends of each element of a batch of this shape, whatever that is where one range holds for all; None where it is
        not known."""
        low, high = (self.low.flat[0], self.high.flat[0]) if self.uniform else (self.low, self.high)
        try:
            return np.broadcast_to(low, shape), np.broadcast_to(high, shape)
        except ValueError:
            return None


def refuse_id(feature: Feature, bound: Bounds, tensor: Tensor, counted: bool = True) -> None:
    """Raises `IdOutOfRangeError` for the first bad id of a feature, if it has one; `counted` says whether the batch has rows."""
    values = array(tensor)
    ends = bound.ends(values.shape)
    if ends is None:
        return
    low, high = ends
    # Written so that NaN, which compares with nothing, is bad.
    bad = ~((values > low - 1) & (values < high) | np.isinf(high))
    if not bad.any():
        return
    place = tuple(int(k) for k in np.argwhere(bad)[0])
    limit, got = EXACT.get(tensor.dtype), values[place].item()
    if limit is not None and isinstance(got, float) and got >= limit and high[place] >= limit:
        cure = f"{tensor.dtype} holds whole numbers only below {limit:,}: give ids as int64."
    else:
        cure = "Map unseen ids to a row of the table before the call."
    raise IdOutOfRangeError(
        f"{_where(feature, place, counted)}: got id {got}, expected {int(low[place])} <= id < {int(high[place]):,}. {cure}",
        feature=feature.name,
        row=_row(feature, place),
    )


def refuse_number(feature: Feature, tensor: Tensor, bad: Tensor, said: str, counted: bool = True) -> None:
    """Raises `InputError` for the first number that is bad, if there is one; `counted` says whether the batch has rows."""
    places = bad.nonzero()
    if not len(places):
        return
    place = places[0].tolist()
    got = float(tensor[tuple(place)])
    raise InputError(
        f"{_where(feature, place, counted)}: got {got:.9g}, {said}",
        feature=feature.name,
        row=_row(feature, place),
    )


def array(tensor: Tensor) -> Array:
    """The elements as numpy has them, of bfloat16 in float32."""
    held: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(force=True)
    return held


def _row(feature: Feature, place: Sequence[int]) -> int:
    return place[feature.growing or 0] if place else 0


def _where(feature: Feature, place: Sequence[int], counted: bool) -> str:
    """The place of an element in words: its row, where the batch has some, and its position."""
    row = feature.growing or 0
    rest = ", ".join(str(k) for axis, k in enumerate(place) if axis != row or not counted)
    where = f"feature {feature.name!r}" + (f", row {_row(feature, place)}" if counted else "")
    return where + (f", position {rest}" if rest else "")
