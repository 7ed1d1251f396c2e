"""What is sharded: a compressed model, the folder of one, or a captured program; and what stands in front of its graph."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from ...artifact import PlainForm, read_plain
from ...as_called import AsCalled
from ...capture import capture
from ...compressed import CompressedModel
from ...errors import InputError
from ...guards import read_guard
from ...nonfinite import Apart
from ...program import Program
from ...request import Once
from ...rows import count_rows
from ...serving.given import cast
from ...shapes import fits, misfit

__all__ = ["Entrance", "Shardable", "Source", "source_of"]

Shardable = CompressedModel | Program | str | os.PathLike[str]
"""A compressed model, a captured program, or the folder of an artifact."""


@dataclass(frozen=True)
class Source:
    """A graph, how it is called, and whether its tables lie in a file that is mapped."""

    graph: fx.GraphModule
    form: PlainForm
    mapped: bool

    def samples(self, flat: Sequence[Tensor]) -> int:
        """The number of rows of a flat batch of the graph; 1 where nothing counts them."""
        rows = count_rows(self.form.program.layout.features, flat)
        return 1 if rows is None else rows


def source_of(what: Shardable, *, types: Sequence[type] = (), verify: bool = True) -> Source:
    """The graph of what is to be sharded.

    Of a model that serves as it was, without a graph, one is captured here. Raises `CaptureError` where it cannot be, `InputError` for what is no
    model of ours, and what `fastrec.load` raises for folders.
    """
    if isinstance(what, CompressedModel):
        return _of_compressed(what)
    if isinstance(what, Program):
        # It is called as its graph is, whatever was declared of its model.
        once = Once([replace(feature, request=False) for feature in what.layout.features])
        return _source(PlainForm(what, what.layout, once, read_guard(what), whole=False, apart=False))
    if isinstance(what, (str, os.PathLike)):
        return _source(read_plain(what, types=types, verify=verify), mapped=True)
    raise InputError(
        f"expected a compressed model, a captured program or the folder of an artifact, got a {type(what).__name__}: compress the model first"
    )


def _source(form: PlainForm, *, mapped: bool = False) -> Source:
    graph = form.program.model
    if not isinstance(graph, fx.GraphModule):
        raise InputError("the model was not captured, so its lookups are not known: only graphs are sharded")
    return Source(graph, form, mapped)


def _of_compressed(fast: CompressedModel) -> Source:
    parts = fast.contents()
    program, whole = parts.program, False
    if program is None:
        model = parts.original.model
        held = model.source if isinstance(model, AsCalled) else None
        program, whole = held or capture(parts.original), held is None or not model.once
    layout = parts.original.layout
    return _source(PlainForm(program, layout, parts.once, parts.guard, whole, parts.apart))


class Entrance:
    """What stands in front of the graph: a call in the model's own form to the flat batch that the graph takes, checked.

    Everything is checked as the compressed model does; but batches that it would leave to the original are refused, since the tables of
    that are on no rank.
    """

    def __init__(self, form: PlainForm) -> None:
        self._form, self._layout, self._once = form, form.layout, form.once
        self._apart = Apart(form.layout) if form.apart else None

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The flat batch. Raises what the compressed model raises, and `InputError` for sizes and numbers that the graph was not made for."""
        flat = self._layout.flatten(args, kwargs)
        rows = count_rows(self._once.candidates, flat) if self._layout.rows is not None else None
        if rows in self._form.program.layout.exempt:
            raise InputError(
                f"the graph does not take {rows} rows, and a sharded model has no original that would"
            )
        for index, tensor in enumerate(flat):
            flat[index] = self._fitting(index, tensor, rows)
        flat = self._once.reduced(flat)
        if self._form.guard is not None:
            self._form.guard(flat)
        if self._apart is not None and not self._apart.clean(flat):
            raise InputError(
                "a number is not finite, and the model approximates: a sharded model has no original for such rows. Clean the batch"
            )
        return self._once.all(flat) if self._form.whole else flat

    def result(self, outputs: Sequence[Tensor]) -> Any:
        """The answer in the model's own structure."""
        return self._layout.result(tuple(outputs))

    def call_of(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How the model is called with a batch in the form of its example."""
        return self._layout.call_of(batch)

    def _fitting(self, index: int, tensor: Tensor, rows: int | None) -> Tensor:
        """The tensor as the graph takes it. Raises `InputError` where it has another type or shape."""
        feature = self._layout.features[index]
        if not fits(feature, tensor, rows):
            raise misfit(feature, tensor, "" if rows is None else f", and the batch has {rows} rows")
        return cast(feature, tensor)
