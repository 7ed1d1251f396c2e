"""Segments: groups of the evaluated rows, and what a model lost in each of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import MeasurementError
from .loss import SIZE, Array, Loss

__all__ = ["Segment", "SegmentLoss", "beyond", "newcomers", "popularity", "read_segments", "values_of"]

_MOST = 1000  # segments of one grouping; ids as they come are no grouping
_WHAT = "numbers, strings or booleans"


@dataclass(frozen=True)
class Segment:
    """The places of `rows`, (n,), of the evaluated rows that have one value of a grouping."""

    grouping: str
    name: str
    rows: Array


@dataclass(frozen=True)
class SegmentLoss:
    """What was lost of one metric in a segment of `rows` rows; no `loss` where its labels leave nothing to measure, as all alike nothing to rank."""

    grouping: str
    segment: str
    metric: str
    rows: int
    loss: Loss | None


def read_segments(given: Mapping[str, Any], count: int) -> tuple[Segment, ...]:
    """The segments of each grouping, in natural order of their values, `count` rows in all.

    Raises `MeasurementError` without groupings, where one has not a value for every row, values of another kind than
    integers, strings and booleans, or more than 1,000 of them.
    """
    if not isinstance(given, Mapping) or not given or not all(isinstance(name, str) for name in given):
        raise MeasurementError(
            f"segments takes a mapping from names of groupings to a value for each row, as {{'user': newcomers(...)}}, got {given!r:.80}"
        )
    found: list[Segment] = []
    for grouping, values in given.items():
        told = values_of(values, f"segments[{grouping!r:.80}]")
        if len(told) != count:
            raise MeasurementError(
                f"segments[{grouping!r:.80}] has {len(told)} values for {count} labels: one for every row is expected"
            )
        known, places = np.unique(told, return_inverse=True)
        if len(known) > _MOST:
            raise MeasurementError(
                f"segments[{grouping!r:.80}] has {len(known):,} different values, at most {_MOST:,} are taken: make groups of them, as popularity(...) does"
            )
        # Sorted once: a search for each value would read all rows as often as there are segments.
        parts = np.split(
            np.argsort(places, kind="stable"), np.cumsum(np.bincount(places, minlength=len(known)))[:-1]
        )
        named = [Segment(grouping, str(value), rows) for value, rows in zip(known, parts, strict=True)]
        found += sorted(named, key=lambda segment: _natural(segment.name))
    return tuple(found)


def beyond(losses: Sequence[Loss], allowed: Sequence[float]) -> list[bool]:
    """Which losses are beyond what is allowed of them, with 95 % for no mistake among all (Holm, 1979).

    Where many are looked at, one of them is far off by chance: at 95 % each, two of forty sound segments would be accused.
    """
    chances = [loss.chance(limit) for loss, limit in zip(losses, allowed, strict=True)]
    found = [False] * len(losses)
    for place, index in enumerate(sorted(range(len(losses)), key=chances.__getitem__)):
        if chances[index] >= SIZE / (len(losses) - place):
            break
        found[index] = True
    return found


def popularity(ids: Any, seen: Any, parts: int = 10) -> Array:
    """For each row how popular its id is: "1 (head)" to "10 (tail)", and "unseen" for ids that training had not.

    `ids` (N,) are those of the rows that are evaluated, `seen` those of training, as often as each was there, or a mapping from
    ids to how often. Rows are put in order of their id's count, the highest first, and cut into `parts` of equal numbers of *rows*,
    not of ids: so each part can certify as much as any other, and the last holds the many ids that are seldom asked for. Ids of
    one count stay together, in the part where the middle of their rows is; parts that stay empty are not counted. O(N log N).

    Raises `MeasurementError` where ids are no integers or strings, those of `seen` of another kind or none of the rows'.

    Example:
        >>> popularity([7, 7, 7, 3, 3, 5, 9, 8], {7: 900, 3: 40, 5: 3, 9: 2}, parts=3).tolist()
        ['1 (head)', '1 (head)', '1 (head)', '2', '2', '3 (tail)', '3 (tail)', 'unseen']
    """
    if type(parts) is not int or parts < 1:
        raise MeasurementError(f"parts is {parts!r:.80}, expected a whole number above 0")
    if isinstance(seen, Mapping):
        known, times = values_of(list(seen), "seen"), list(seen.values())
    else:
        known, counted = np.unique(values_of(seen, "seen"), return_counts=True)
        times = counted.tolist()
    asked = _alike(values_of(ids, "ids"), known)
    often = dict(zip(known.tolist(), times, strict=True))
    values, places = np.unique(asked, return_inverse=True)
    counts = np.array([often.get(value, 0) for value in values.tolist()], dtype=np.float64)[places]
    if not (counts > 0).any():
        raise MeasurementError("none of the ids is among those seen: give both as training had them")
    _, step, rows = np.unique(-counts[counts > 0], return_inverse=True, return_counts=True)
    middle = rows.cumsum() - rows / 2
    part = np.minimum(middle / rows.sum() * parts, parts - 1).astype(int)
    part = np.unique(part, return_inverse=True)[1]
    last = int(part.max())
    ends = {0: " (head)", last: " (tail)"} if last else {}
    names = np.array([f"{number + 1}{ends.get(number, '')}" for number in part.tolist()])
    told = np.full(len(counts), "unseen", dtype=np.result_type(names, "U6"))
    told[counts > 0] = names[step]
    return told


def newcomers(ids: Any, known: Any) -> Array:
    """For each row "known" where its id (N,) is among `known`, those that training had, else "new".

    Raises `MeasurementError` where ids are no integers or strings, or those of `known` of another kind. O(N log N).

    Example:
        >>> newcomers(["ann", "bob", "ann"], {"ann", "eve"}).tolist()
        ['known', 'new', 'known']
    """
    had = values_of(known, "known")
    asked = _alike(values_of(ids, "ids"), had)
    values, places = np.unique(asked, return_inverse=True)
    # As Python's integers: numpy compares signed with unsigned ones as floats, which are alike for large ids.
    there = set(had.tolist())
    return np.where(
        np.array([value in there for value in values.tolist()], dtype=bool)[places], "known", "new"
    )


def values_of(given: Any, where: str) -> Array:
    """Integers or strings, one for each row, booleans as strings."""
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy()
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes, Sequence)):
        given = np.asarray(given) if hasattr(given, "__array__") else list(given)
    try:
        told = np.asarray(given)
    except ValueError as error:  # sequences of unequal lengths
        raise MeasurementError(f"{where} takes {_WHAT}, one for each row: {error}") from error
    if told.ndim == 2 and told.shape[1] == 1:
        told = told[:, 0]
    if told.ndim != 1:
        raise MeasurementError(f"{where} has shape {told.shape}, expected one value for each row: (N,)")
    if told.dtype.kind == "O":
        strange = next(
            (row for row, one in enumerate(told) if not isinstance(one, (str, int, np.integer))), None
        )
        if strange is not None:
            raise MeasurementError(f"{where}: row {strange} has {told[strange]!r:.80}, expected {_WHAT}")
        whole = all(isinstance(one, (int, np.integer)) and not isinstance(one, bool) for one in told)
        try:
            told = told.astype(np.int64 if whole else str)
        except OverflowError as error:
            raise MeasurementError(
                f"{where} has integers of more than 64 bits: give them as strings"
            ) from error
    if told.dtype.kind not in "iuUb" and len(told):
        cure = ": cut them into groups, as with numpy.digitize" if told.dtype.kind == "f" else ""
        raise MeasurementError(f"{where} holds {told.dtype}, expected {_WHAT}{cure}")
    return told.astype(str) if told.dtype.kind == "b" else told


def _alike(asked: Array, known: Array) -> Array:
    """The ids that are asked for, if they are of the kind of those known."""
    if len(asked) and len(known) and (asked.dtype.kind == "U") != (known.dtype.kind == "U"):
        raise MeasurementError(
            f"ids are {asked.dtype} and those of training {known.dtype}: give both as integers, or both as strings"
        )
    return asked


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A key by which "2" comes before "10"."""
    parts = re.split(r"([0-9]+)", name)
    return [
        (False, int(part), "") if place % 2 else (True, 0, part) for place, part in enumerate(parts) if part
    ]
