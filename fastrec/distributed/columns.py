"""From columns of a table to the flat tensors of a model, by name.

A feature reads the column of its name, or of the name's last part (`batch.user` reads `user`). What a row holds of it is a scalar or
a list, flat or nested; of values that offsets or lengths cut, a list as long as it is. What is the same for any number of rows
is a column as well: rows that agree in it are one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..guards import Bounds
from ..inputs import Feature, Layout
from ..trees import Branch, Leaf, Tree
from .numbers import Reasons, lists, tensor_of
from .tables import Array, column, length, names

__all__ = ["Bad", "Columns"]

Bad = dict[int, tuple[str, str]]
"""Rows that cannot be scored, by number: the feature, and what is wrong with it."""

_CUTTERS = ("starts", "bounds", "lengths")


class Columns:
    """How a model's features are read from tables. `wanted` gives columns of other names: one, or one for each entry of a feature's row."""

    def __init__(
        self, layout: Layout, bounds: Sequence[Bounds | None], wanted: Mapping[str, str | Sequence[str]]
    ) -> None:
        self.features = tuple(
            replace(f, role="rows", axis=0, shape=(1, *f.shape)) if f.role == "fixed" else f
            for f in layout.features
        )
        self.fixed = frozenset(i for i, f in enumerate(layout.features) if f.role == "fixed")
        self._exact = [_exact(f, bound) for f, bound in zip(self.features, bounds, strict=True)]
        known = {f.name for f in self.features if f.role not in _CUTTERS}
        if strange := sorted(set(wanted) - known):
            raise InputError(
                f"columns: the model has no feature {strange[0]!r}, it has {', '.join(sorted(known))}"
            )
        self._wanted = {name: (one,) if isinstance(one, str) else tuple(one) for name, one in wanted.items()}
        self._keys = dict(_keys_of(layout.trees, self.features))

    def names(self, given: Sequence[str] = ()) -> list[str]:
        """The columns that are read, of those given where there is a choice, in the order of the features."""
        found = [name for f in self.features if f.role not in _CUTTERS for name in self._columns(f, given)]
        return list(dict.fromkeys(found))

    def shapes(self) -> dict[str, tuple[int, ...] | None]:
        """What a row holds of each feature, by its name: the sizes, None where they are each row's own."""
        return {
            f.name: None if f.role == "values" else _row_shape(f)
            for f in self.features
            if f.role not in _CUTTERS
        }

    def read(self, table: Any) -> tuple[list[Tensor], Bad]:
        """The flat batch of all rows, zeros or nothing in the rows that are bad, and these.

        Raises `InputError` where the table has no column for a feature, or two of its name.
        """
        rows, given, bad = length(table), names(table), Bad()
        if not given:
            raise InputError(f"the table has no columns, expected {', '.join(self.names())}")
        made: list[Tensor | None] = [None] * len(self.features)
        for index, feature in enumerate(self.features):
            if feature.role == "rows":
                made[index] = self._rows(index, table, given, rows, bad)
            elif feature.role in _CUTTERS:
                for place, tensor in self._group(index, table, given, rows, bad):
                    made[place] = tensor
        assert all(tensor is not None for tensor in made)
        return [tensor for tensor in made if tensor is not None], bad

    def _rows(self, index: int, table: Any, given: Sequence[str], rows: int, bad: Bad) -> Tensor:
        feature, found = self.features[index], self._columns(self.features[index], given)
        shape, exact = _row_shape(feature), self._exact[index]
        seen = Reasons()
        if len(found) == 1:
            values, missing = column(table, found[0])
            made = tensor_of(values, missing, shape, feature.dtype, seen, exact)
            _tell(bad, seen, feature.name, found[0])
        else:
            if np.prod(shape, dtype=int) != len(found):
                raise InputError(
                    f"columns: {len(found)} columns for feature {feature.name!r}, whose rows hold {int(np.prod(shape, dtype=int))}",
                    feature=feature.name,
                )
            flat = None if exact is None else exact.reshape(1, -1)
            parts = []
            for place, name in enumerate(found):
                values, missing = column(table, name)
                seen = Reasons()
                parts.append(
                    tensor_of(
                        values, missing, (), feature.dtype, seen, None if flat is None else flat[:, place]
                    )
                )
                _tell(bad, seen, feature.name, name)
            made = torch.stack(parts, 1).reshape(rows, *shape)
        return made.movedim(0, feature.axis or 0) if feature.axis else made

    def _group(
        self, index: int, table: Any, given: Sequence[str], rows: int, bad: Bad
    ) -> Iterator[tuple[int, Tensor]]:
        """What a feature cuts, and the feature: every row's list behind the other's, the first key's before the second's."""
        cutter = self.features[index]
        members = [
            (i, f) for i, f in enumerate(self.features) if f.role == "values" and f.group == cutter.name
        ]
        parts: dict[int, list[list[Array]]] = {}
        for i, feature in members:
            parts[i] = []
            for name in self._columns(feature, given):
                values, missing = column(table, name)
                seen = Reasons()
                parts[i].append(lists(values, feature.shape[1:], seen))
                if missing is not None:
                    seen.update({int(row): "missing" for row in missing.nonzero()[0]})
                _tell(bad, seen, feature.name, name)
        first = members[0][0]
        sizes = np.array([[len(row) for row in key] for key in parts[first]], np.int64).reshape(-1, rows)
        for i, feature in members[1:]:
            other = np.array([[len(row) for row in key] for key in parts[i]], np.int64).reshape(-1, rows)
            for row in (other != sizes).any(0).nonzero()[0]:
                said = f"has {other[:, row].sum()} values, and {members[0][1].name!r} {sizes[:, row].sum()}"
                bad.setdefault(int(row), (feature.name, f"feature {feature.name!r}: {said}"))
        gone = frozenset(bad)
        sizes[:, sorted(gone)] = 0
        owner = np.repeat(np.tile(np.arange(rows), len(sizes)), sizes.ravel())
        for i, feature in members:
            kept = [
                row for key in parts[i] for number, row in enumerate(key) if number not in gone and len(row)
            ]
            flat = np.concatenate(kept) if kept else np.zeros((0, *feature.shape[1:]), np.int64)
            seen = Reasons()
            yield i, tensor_of(flat, None, feature.shape[1:], feature.dtype, seen, self._exact[i])
            _tell(bad, {int(owner[place]): said for place, said in reversed(seen.items())}, feature.name, "")
        lengths = torch.from_numpy(sizes.ravel())
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        made = lengths if cutter.role == "lengths" else ends[:-1] if cutter.role == "starts" else ends
        yield index, made.to(cutter.dtype)

    def _columns(self, feature: Feature, given: Sequence[str]) -> tuple[str, ...]:
        short = feature.name.rpartition(".")[2]
        same = sum(other.name.rpartition(".")[2] == short for other in self.features)
        names = self._wanted.get(feature.name) or self._keys.get(feature.name)
        if names is None:
            names = (feature.name if feature.name in given or same > 1 else short,)
        for name in names if given else ():
            if name not in given:
                raise InputError(
                    f"the table has no column {name!r} for feature {feature.name!r}: it has {', '.join(map(str, given))}. "
                    f"Name the column: columns={{{feature.name!r}: ...}}",
                    feature=feature.name,
                )
            if given.count(name) > 1:
                raise InputError(
                    f"the table has {given.count(name)} columns {name!r}, and feature {feature.name!r} reads one: rename the others",
                    feature=feature.name,
                )
        return names


def _row_shape(feature: Feature) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(feature.shape) if axis != (feature.axis or 0))


def _tell(bad: Bad, seen: Reasons, feature: str, name: str) -> None:
    short = feature.rpartition(".")[2]
    where = f"feature {feature!r}" + (f", column {name!r}" if name not in ("", feature, short) else "")
    for row, said in seen.items():
        bad.setdefault(row, (feature, f"{where}: {said}"))


def _keys_of(trees: Sequence[Tree], features: Sequence[Feature]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names of the lists that a jagged tensor holds, by the feature that has their values."""
    for tree in trees:
        if not isinstance(tree, Branch):
            continue
        if tree.kind == "jagged" and isinstance(tree.children[0], Leaf):
            yield features[tree.children[0].index].name, tuple(map(str, tree.extra))
        yield from _keys_of(tree.children, features)


def _exact(feature: Feature, bound: Bounds | None) -> Array | None:
    """Where a feature's numbers are ids (1, ...), the same in every row."""
    if bound is None or not np.isfinite(bound.high).any():
        return None
    shape, axis = list(feature.shape), feature.growing or 0
    shape[axis] = 1
    return np.moveaxis(np.broadcast_to(np.isfinite(bound.high), shape), axis, 0).copy()
