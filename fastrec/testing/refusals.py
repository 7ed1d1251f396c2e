"""Whether bad ids and numbers that are not finite are refused by name and row, or kept to their row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..errors import IdOutOfRangeError, InputError
from ..guards import Bounds
from ..inputs import Feature
from ..trees import tensors_of
from .pair import Flat, Pair
from .values import alike

__all__ = ["check_ids", "check_nonfinite"]

_COUNT, _ROW = 3, 1


def check_ids(pair: Pair) -> None:
    """Raise `AssertionError` where an id that no table has is answered, or refused without feature and row.

    Each feature is given its number of ids, the number below its first, and the largest its dtype holds. Nothing is
    asked where `guards=False`, or where the model was not captured: its tables then refuse for themselves.
    """
    guard = pair.fast.guard
    flat = pair.some(_COUNT) if guard is not None and pair.layout.rows is not None else None
    if guard is None or flat is None:
        return
    for index, (feature, bound) in enumerate(zip(pair.layout.features, guard.bounds, strict=True)):
        place = _place(feature, flat[index], bound)
        if bound is None or place is None:
            continue
        low, high = (int(np.broadcast_to(part, flat[index].shape)[place]) for part in (bound.low, bound.high))
        for wrong in _wrong(flat[index].dtype, low, high):
            batch = [tensor.clone() for tensor in flat]
            _put(feature, batch[index], place, wrong)
            what = f"id {wrong} of a table that has {low} <= id < {high}"
            _refused(pair, batch, feature, what, IdOutOfRangeError)


def check_nonfinite(pair: Pair) -> None:
    """Raise `AssertionError` where a NaN is neither refused with feature and row, nor kept to its row.

    Nothing is asked where `guards=False` and what serves approximates: it then may be anything.
    """
    flat = pair.some(_COUNT) if pair.layout.rows is not None and pair.bounds is not None else None
    if flat is None or pair.bounds is None:
        return
    guard, promised = pair.fast.guard, pair.fast.recipe.promised
    clean = tensors_of(pair.answer(flat, f"{_COUNT} rows of a batch"))
    for index, (feature, bound) in enumerate(zip(pair.layout.features, pair.bounds, strict=True)):
        if not flat[index].is_floating_point() or feature.role != "rows" or feature.request:
            continue
        place = _place(feature, flat[index], bound, ids=False)
        if place is None or feature.name in promised:
            continue
        batch = [tensor.clone() for tensor in flat]
        batch[index][place] = torch.nan
        if guard is not None and index in guard.finite:
            _refused(pair, batch, feature, "a NaN", InputError)
        elif pair.by_row and (pair.fast.exact or pair.fast.separates):
            _kept(pair, batch, feature, clean)


def _kept(pair: Pair, batch: Flat, feature: Feature, clean: Flat) -> None:
    """The row of a NaN is as the model has it, and the others are as they were."""
    try:
        expected = tensors_of(pair.expected(batch))
    except Exception:  # noqa: BLE001 - the model itself does not take a NaN here
        return
    where = f"feature {feature.name!r}, row {_ROW}: with a NaN"
    got = tensors_of(pair.answer(batch, where))
    others = torch.tensor([row for row in range(_COUNT) if row != _ROW])
    for old, new, was, axis in zip(expected, got, clean, pair.layout.output_axes, strict=True):
        assert axis is not None  # there are rows in every answer: by_row
        if not torch.equal(old.isfinite(), new.isfinite()):
            seen, meant = (int((~one.isfinite()).sum()) for one in (new, old))
            raise AssertionError(
                f"{where} {seen} answers are not finite, expected {meant}, where the model's are"
            )
        if not alike([was.index_select(axis, others)], [new.index_select(axis, others)]):
            raise AssertionError(
                f"{where} the answers of other rows change, expected what they are without it"
            )


def _refused(pair: Pair, batch: Flat, feature: Feature, what: str, kind: type[InputError]) -> None:
    row = None if feature.request or feature.role != "rows" else _ROW
    where = f"feature {feature.name!r}" + ("" if row is None else f", row {row}")
    expected = f"expected {kind.__name__} naming feature" + ("" if row is None else " and row")
    args, kwargs = pair.layout.arguments(batch)
    try:
        pair.fast(*args, **kwargs)
    except kind as error:
        if error.feature != feature.name or error.row is None or (row is not None and error.row != row):
            raise AssertionError(
                f"{where}: {what} raised {kind.__name__} naming feature {error.feature!r} and row {error.row}, {expected}"
            ) from error
        return
    except Exception as error:  # anything else is no refusal by name
        raise AssertionError(f"{where}: {what} raised {type(error).__name__}: {error}; {expected}") from error
    raise AssertionError(f"{where}: {what} was answered, {expected}")


def _place(
    feature: Feature, tensor: Tensor, bound: Bounds | None, *, ids: bool = True
) -> tuple[int, ...] | None:
    """The first element of the row that is an id, or that is none; of features that do not count rows the first of all."""
    shape = tuple(tensor.shape)
    known = (
        np.isfinite(np.broadcast_to(bound.high, shape)) if bound is not None else np.zeros(shape, dtype=bool)
    )
    wanted = known if ids else ~known
    if feature.role == "rows":
        here = np.zeros(shape, dtype=bool)
        here[(slice(None),) * (feature.axis or 0) + (_ROW,)] = True
        wanted = wanted & here
    places = np.argwhere(wanted)
    return tuple(int(k) for k in places[0]) if len(places) else None


def _put(feature: Feature, tensor: Tensor, place: tuple[int, ...], value: int) -> None:
    """A value at one place; in every row of what all rows agree in."""
    if feature.request and feature.role == "rows":
        axis = feature.axis or 0
        tensor.movedim(axis, -1)[place[:axis] + place[axis + 1 :]] = value
    else:
        tensor[place] = value


def _wrong(dtype: torch.dtype, low: int, high: int) -> Iterator[int]:
    """Ids that do not exist, as far as the dtype can hold them."""
    if dtype.is_floating_point:
        yield from (high, low - 1)
        return
    limits = torch.iinfo(dtype)
    for wrong in dict.fromkeys((high, low - 1, limits.max)):
        if limits.min <= wrong <= limits.max and not low <= wrong < high:
            yield wrong
