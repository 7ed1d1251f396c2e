"""A model and what stands for it, asked with the same flat batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..compressed import CompressedModel
from ..guards import Bounds, read_guard
from ..inputs import Layout
from ..program import Program, target_of
from ..rows import count_rows, take_rows

__all__ = ["Flat", "Pair"]

Flat = list[Tensor]


@dataclass(frozen=True)
class Pair:
    """The model `given`, as a program that shares its tensors and evaluates; what stands for it; real batches, flat.

    `bounds` are the ranges of each feature's ids, None where ids are not known.
    """

    given: nn.Module
    original: Program
    fast: CompressedModel
    flat: tuple[Flat, ...]
    bounds: tuple[Bounds | None, ...] | None

    @classmethod
    def of(cls, model: Any, fast: CompressedModel, batches: Sequence[Any]) -> Pair:
        """The pair of what was compressed and what came of it."""
        given, entry = target_of(model)
        read = Program(given, batches[0], fast.original.layout, entry)
        original = read.private()
        guard = fast.guard or (read_guard(fast.program) if fast.program is not None else None)
        flat = tuple(original.flat(batch) for batch in batches)
        return cls(given, original, fast, flat, None if guard is None else guard.bounds)

    @property
    def layout(self) -> Layout:
        """How both are called."""
        return self.original.layout

    @property
    def by_row(self) -> bool:
        """Whether each row has an answer of its own."""
        layout = self.layout
        return layout.rows is not None and layout.independent and None not in layout.output_axes

    def taken(self, flat: Flat, rows: Sequence[int]) -> Flat:
        """These rows of a flat batch, in memory of their own."""
        chosen = take_rows(self.layout.features, flat, torch.tensor(rows, dtype=torch.int64))
        return [tensor.clone() for tensor in chosen]

    def some(self, count: int, index: int = 0) -> Flat | None:
        """So many rows of one of the batches, again from the first where it has fewer; None where none has any."""
        held = [flat for flat in self.flat if count_rows(self.layout.features, flat)]
        if not held:
            return None
        flat = held[index % len(held)]
        rows = count_rows(self.layout.features, flat) or 1
        return self.taken(flat, [row % rows for row in range(count)])

    def expected(self, flat: Flat) -> Any:
        """The model's answer. Errors pass through."""
        with torch.random.fork_rng(devices=[]):
            return self.original.called([tensor.clone() for tensor in flat])

    def answer(self, flat: Flat, where: str) -> Any:
        """The compressed model's answer to a flat batch. Raises `AssertionError` where it gives none."""
        return self.called(where, *self.layout.arguments(flat))

    def called(self, where: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The compressed model's answer. Raises `AssertionError` where it gives none."""
        try:
            return self.fast(*args, **kwargs)
        except Exception as error:  # whatever it is, it is no answer
            raise AssertionError(
                f"{where}: the compressed model raised {type(error).__name__}: {error}; expected an answer, as the model "
                "gives one"
            ) from error
