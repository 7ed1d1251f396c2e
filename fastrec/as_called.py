"""Flat answers behind the face of the model: called in the caller's form, whatever computes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .program import Answers, Program
from .request import Once
from .rows import take_rows

__all__ = ["AsCalled", "plainly"]


class AsCalled(nn.Module):
    """A module called as the program's model is, which answers by `run`: flat tensors in, flat tensors out.

    `run` takes one row of each request feature; a batch of several requests is run request by request. `source` is the program
    that answers, where it is one.
    """

    def __init__(self, program: Program, once: Once, run: Answers, source: Program | None = None) -> None:
        super().__init__()
        self._layout, self.once, self._run = program.layout, once, run
        # In a tuple, so that the graph is no submodule.
        self._source = (source,)
        self.train(False)

    @property
    def source(self) -> Program | None:
        """The program that answers."""
        return self._source[0]

    def call_of(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How this is called with a batch in the model's form."""
        return self._layout.call_of(batch)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The answer for one batch."""
        layout = self._layout
        flat = layout.flatten(args, kwargs)
        if not self.once:
            return layout.result(tuple(self._run(flat)))
        groups = self.once.groups(flat) or [torch.arange(0)]
        back = torch.cat(groups).argsort()
        parts = [self._run(self.once.first(take_rows(layout.features, flat, rows))) for rows in groups]
        joined = [
            answers[0] if axis is None else torch.cat(answers, axis).index_select(axis, back)
            for answers, axis in zip(zip(*parts, strict=True), layout.output_axes, strict=True)
        ]
        return layout.result(tuple(joined))


def plainly(original: Program, once: Once, program: Program) -> Program:
    """What `program` answers, as it is written, behind the face of the original; holds nothing of that but its layout."""
    made = AsCalled(original, once, program.answers, program)
    return replace(original.with_model(made), entry="forward", batch=None).bare()
