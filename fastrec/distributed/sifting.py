"""Rows that a check refuses, found by what its error says, and where it does not say, by halves."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ..errors import FastrecError, InputError
from .columns import Bad

__all__ = ["said", "sift"]

Check = Callable[[Tensor], object]


def sift(check: Check, rows: Tensor, bad: Bad, shared: Collection[str] = ()) -> Tensor:
    """The rows, in their order, that pass a check of row numbers (M,); `bad` is told of the others.

    A row that an error names is looked at alone, and the rest in two halves: b bad rows of M cost 3 b + 1 checks at the most, and
    2 b log M + 1 where errors name none, of 2 b M or M log M rows together, whichever is less. An error in a feature of `shared` is one of all rows. Raises errors that
    are no row's: those of `FastrecError` that are no `InputError`.
    """
    if not len(rows):
        return rows
    error = _refusal(check, rows)
    if error is None:
        return rows
    feature = error.feature if isinstance(error, InputError) else ""
    if len(rows) == 1 or feature in shared:
        bad.update({row: (feature, said(error)) for row in rows.tolist()})
        return rows[:0]
    place = error.row if isinstance(error, InputError) else None
    if place is not None and place < len(rows) and (alone := _refusal(check, rows[place : place + 1])):
        feature = alone.feature if isinstance(alone, InputError) else ""
        bad[int(rows[place])] = (feature, said(alone))
        rows = torch.cat([rows[:place], rows[place + 1 :]])
    half = (len(rows) + 1) // 2
    return torch.cat([sift(check, part, bad, shared) for part in (rows[:half], rows[half:])])


def said(error: Exception) -> str:
    """What an error says of the only row it was about."""
    text = str(error)
    if isinstance(error, InputError) and error.row is not None:
        named = f"feature {error.feature!r}"
        text = text.replace(f"{named}, row {error.row}", named, 1).removeprefix(f"row {error.row}: ")
    elif not isinstance(error, InputError):
        text = f"{type(error).__name__}: {text}"
    return text[:500]


def _refusal(check: Check, rows: Tensor) -> Exception | None:
    try:
        check(rows)
    except InputError as error:
        return error
    except FastrecError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a stranger's model raises at a row: the row's reason
        return error
    return None
