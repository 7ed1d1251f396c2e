"""How a model's batches are put together from one request and the candidates of a catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..guards import Guard
from ..program import Program
from ..request import Once
from ..rows import count_rows, take_rows
from .given import read_side

__all__ = ["Catalogue"]


class Catalogue:
    """The features of both sides: flat batches with one row of the request and any number of candidates.

    `candidates` and `request` number the features of each side, `mixed` gives the request's columns of a matrix that
    has some of both. `original` takes what `together` makes. With a `guard`, what is read is checked.
    """

    def __init__(self, original: Program, asked: Program, guard: Guard | None) -> None:
        self.original, self.guard = original, guard
        self.features = asked.layout.features
        self.exempt = asked.layout.exempt
        self.example = list(asked.batch)
        self._once = Once(original.layout.features)
        self.mixed = {i: list(f.request) for i, f in enumerate(self.features) if isinstance(f.request, tuple)}
        self.candidates = [i for i, f in enumerate(self.features) if f.role != "fixed"]
        self.request = [i for i, f in enumerate(self.features) if f.role == "fixed" or i in self.mixed]
        if count_rows(self.features, self.example) is None:
            raise InputError(
                "no dimension of the batch was found to count candidates: nothing can be precomputed."
            )
        self._one = take_rows(self.features, self.example, torch.zeros(1, dtype=torch.long))

    def count(self, given: Sequence[Tensor]) -> int:
        """The number of candidates in a flat batch."""
        return count_rows(self.features, given) or 0

    def read_candidates(self, candidates: Any) -> list[Tensor]:
        """A flat batch of these candidates, and the example's request. Copies: the caller's tensors stay theirs."""
        taken = read_side(candidates, self.features, self.candidates, "candidates")
        flat = list(self.example)
        for index, tensor in taken.items():
            if index in self.mixed and tensor.dim() == 2:
                tensor = self._with_columns(index, tensor, flat[index][:1], request=False)
            flat[index] = self._fit(index, tensor).clone(memory_format=torch.contiguous_format)
        rows = self.count(flat)
        for index in self.candidates:
            feature = self.features[index]
            if feature.role == "rows" and flat[index].shape[feature.axis or 0] != rows:
                raise InputError(
                    f"feature {feature.name!r} has {flat[index].shape[feature.axis or 0]} rows, others of the "
                    f"candidates have {rows}.",
                    feature=feature.name,
                )
        if not rows:
            raise InputError("the catalogue is empty: give at least one candidate.")
        if self.guard is not None:
            self.guard(flat)
        return flat

    def read_request(self, request: Any) -> list[Tensor]:
        """A flat batch of this request, and one candidate of the example."""
        taken = read_side(request, self.features, self.request, "request")
        flat = list(self._one)
        for index, tensor in taken.items():
            if index in self.mixed and tensor.dim() == 2:
                tensor = self._with_columns(index, tensor, flat[index], request=True)
            flat[index] = self._fit(index, tensor, 1)
        if self.guard is not None:
            self.guard(flat)
        return flat

    def together(self, request: Sequence[Tensor], candidates: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        """The flat batch that the original takes: the request repeated for these rows of the candidates."""
        flat = take_rows(self.features, candidates, rows)
        for index in self.request:
            if index not in self.mixed:
                flat[index] = request[index]
            else:
                flat[index] = self.merged(index, request[index], flat[index].clone())
        return self._once.all(flat)

    def merged(self, index: int, request: Tensor, matrix: Tensor) -> Tensor:
        """The matrix of candidates with the request's columns in every row, written in place."""
        matrix[:, self.mixed[index]] = request[:, self.mixed[index]]
        return matrix

    def _with_columns(self, index: int, tensor: Tensor, example: Tensor, *, request: bool) -> Tensor:
        """A matrix of one side's columns as the whole matrix."""
        width = example.shape[1]
        columns = [k for k in range(width) if (k in self.mixed[index]) == request]
        if tensor.shape[1] not in (len(columns), width):
            return tensor
        made = example.repeat(len(tensor), 1)
        made[:, columns] = tensor if tensor.shape[1] == len(columns) else tensor[:, columns]
        return made

    def _fit(self, index: int, tensor: Tensor, rows: int | None = None) -> Tensor:
        feature = self.features[index]
        expected: list[Any] = list(feature.shape)
        if feature.growing is not None:
            expected[feature.growing] = "N" if rows is None else rows
        same = len(expected) == tensor.dim() and all(
            want in ("N", got) for want, got in zip(expected, tensor.shape, strict=True)
        )
        if not same:
            raise InputError(
                f"feature {feature.name!r} is {tuple(tensor.shape)}, expected ({', '.join(map(str, expected))}).",
                feature=feature.name,
            )
        return tensor
