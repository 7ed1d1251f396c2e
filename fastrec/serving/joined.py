"""The batches of several requests as one: one row of each request's features, the candidates of all joined, and offsets.

    u (R, ...)      C (N, ...)      offsets (R + 1)         the candidates of request r are offsets[r] <= n < offsets[r + 1]

`owner[n]` is the request that candidate n belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError, RequestMismatchError
from ..inputs import Feature, Layout
from ..request import Once
from ..shapes import fits, misfit

__all__ = ["Joined", "Joiner"]


@dataclass(frozen=True)
class Joined:
    """The flat tensors of R requests and how many candidates each has, at least one."""

    flat: tuple[Tensor, ...]
    sizes: tuple[int, ...]

    @cached_property
    def owner(self) -> Tensor:
        """The request of each candidate (N,)."""
        return torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))

    @cached_property
    def starts(self) -> Tensor:
        """The first candidate of each request (R,)."""
        counts = torch.tensor(self.sizes)
        return counts.cumsum(0) - counts

    @property
    def rows(self) -> int:
        """The number N of candidates."""
        return sum(self.sizes)


class Joiner:
    """Joins and cuts batches of a layout. `unable` says why its batches cannot be joined, if they cannot.

    A batch of one request is flat, with one row of each request feature. Of a matrix with columns of the request all
    rows are kept, and the first of each request's is read.
    """

    def __init__(self, layout: Layout, once: Once) -> None:
        self._checks = once.check
        self.features: tuple[Feature, ...] = once.candidates
        self.axes = layout.output_axes
        self._given = features = layout.features
        self.whole = {
            i: f.axis or 0 for i, f in enumerate(features) if f.request is True and f.role == "rows"
        }
        self.mixed = {
            i: list(f.request)
            for i, f in enumerate(features)
            if isinstance(f.request, tuple) and f.role == "rows"
        }
        self.fixed = [i for i, f in enumerate(features) if f.role == "fixed"]
        self.counted = {i: f.axis or 0 for i, f in enumerate(self.features) if f.role == "rows"}
        self.unable = self._unable(layout)

    def _unable(self, layout: Layout) -> str:
        if layout.rows is None or not self.counted:
            return "no dimension of its batches was found to count rows"
        if not layout.independent:
            return "the answer for a row depends on the other rows of its batch"
        for feature in self.features:
            if feature.role not in ("rows", "fixed"):
                return f"the rows of feature {feature.name!r} are cut by offsets of their own"
        for feature in layout.features:
            if feature.request and feature.role == "fixed":
                return f"feature {feature.name!r} has one row in every batch of the model's"
        if None in layout.output_axes:
            return "an answer does not count its rows"
        return ""

    def count(self, flat: Sequence[Tensor]) -> int:
        """The number of candidates of one request."""
        index, axis = next(iter(self.counted.items()))
        if flat[index].dim() <= axis:
            raise misfit(self.features[index], flat[index])
        return flat[index].shape[axis]

    def alike(self, flat: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
        """Whether what is the same for any number of rows is the same in both batches."""
        return all(flat[i] is other[i] or torch.equal(flat[i], other[i]) for i in self.fixed)

    def fits(self, flat: Sequence[Tensor]) -> bool:
        """Whether a batch has the sizes of the example, but for numbers of rows."""
        rows = self.count(flat)
        # Of whole request features there is a row for each request.
        return all(
            fits(feature, tensor, None if index in self.whole else rows)
            for index, (feature, tensor) in enumerate(zip(self._given, flat, strict=True))
        )

    def join(self, flats: Sequence[Sequence[Tensor]]) -> Joined:
        """The batches of several requests as one. Each has a candidate, and all are alike."""
        made = []
        for index, first in enumerate(flats[0]):
            axis = self.whole.get(index, self.counted.get(index))
            parts = [flat[index] for flat in flats]
            made.append(first if axis is None or len(parts) == 1 else torch.cat(parts, axis))
        return Joined(tuple(made), tuple(self.count(flat) for flat in flats))

    def read(self, flat: Sequence[Tensor], offsets: Tensor) -> Joined:
        """Several requests given as one batch: those that have candidates.

        Request features have a row for each request, or one for each candidate. Raises `InputError` where offsets or
        numbers of rows do not fit, and where rows of one request differ.
        """
        for feature, tensor in zip(self.features, flat, strict=True):
            if tensor.dim() != len(feature.shape):
                raise misfit(feature, tensor)
        whole = offsets.dim() == 1 and len(offsets) > 1 and not offsets.is_floating_point()
        rows, counts = self.count(flat), offsets.diff() if whole else offsets
        if not whole or int(offsets[0]) or int(offsets[-1]) != rows or bool((counts < 0).any()):
            raise InputError(
                f"offsets are whole numbers from 0 up to the {rows} candidates, one more than there are requests: got "
                f"{offsets.tolist()!r:.80}"
            )
        kept = counts.nonzero()[:, 0]
        starts, made = offsets[:-1][kept].long(), list(flat)
        for index, axis in self.whole.items():
            given, name = flat[index], self.features[index].name
            if given.shape[axis] == len(counts):
                made[index] = given.index_select(axis, kept)
            elif given.shape[axis] == rows:
                made[index] = given.index_select(axis, starts)
                self._agree(name, made[index].movedim(axis, 0), given.movedim(axis, 0), counts[kept])
            else:
                raise InputError(
                    f"feature {name!r} has {given.shape[axis]} rows, expected {len(counts)}, one for each request, or "
                    f"{rows}, one for each candidate.",
                    feature=name,
                )
        for index, columns in self.mixed.items():
            given = flat[index][:, columns]
            self._agree(self.features[index].name, given[starts], given, counts[kept])
        return Joined(tuple(made), tuple(counts[kept].tolist()))

    def _agree(self, name: str, first: Tensor, given: Tensor, counts: Tensor) -> None:
        if not self._checks:
            return
        spread = first.repeat_interleave(counts, 0)
        differ = spread.ne(given) & ~(spread.ne(spread) & given.ne(given))
        if bool(differ.any()):
            row = int(differ.nonzero()[0, 0])
            raise RequestMismatchError(
                f"feature {name!r}, row {row}: it differs from the first row of the same request, and request features "
                "are the same for all candidates of one.",
                feature=name,
                row=row,
            )

    def cut(self, joined: Joined) -> list[list[Tensor]]:
        """The batch of each request."""
        made: list[list[Tensor]] = [[] for _ in joined.sizes]
        for index, tensor in enumerate(joined.flat):
            if index in self.whole:
                parts: Sequence[Tensor] = tensor.split(1, self.whole[index])  # type: ignore[no-untyped-call]  # `Tensor.split` has no types
            elif index in self.counted:
                parts = tensor.split(joined.sizes, self.counted[index])  # type: ignore[no-untyped-call]  # as above
            else:
                parts = [tensor] * len(made)
            for flat, part in zip(made, parts, strict=True):
                flat.append(part)
        return made

    def repeated(self, joined: Joined) -> list[Tensor]:
        """The batch of all candidates with request features in every row, as a model takes them."""
        made = list(joined.flat)
        for index, axis in self.whole.items():
            made[index] = made[index].index_select(axis, joined.owner)
        return made

    def answers(self, parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The flat answers of all requests, from those of each."""
        return [
            torch.cat(found, axis or 0)
            for found, axis in zip(zip(*parts, strict=True), self.axes, strict=True)
        ]

    def split(self, outputs: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
        """The flat answers of each request. Copies: a view would carry the answers of all to whoever keeps it."""
        parts = [
            [part.clone() for part in tensor.split(list(sizes), axis or 0)]  # type: ignore[no-untyped-call]  # as above
            for tensor, axis in zip(outputs, self.axes, strict=True)
        ]
        return [list(answer) for answer in zip(*parts, strict=True)]
