"""Who serves what the sessions do not, where the original's code is not there: its captured graph, within what that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..as_called import AsCalled
from ..errors import InputError
from ..program import Program
from ..request import Once
from ..rows import count_rows
from ..shapes import fits, misfit

__all__ = ["standing_for"]

_CURE = "Load it with the original, load(folder, model=...), which then serves these"


def standing_for(original: Program, once: Once, graph: Program) -> Program:
    """The original's calling form, answered by a graph. Of other sizes than the graph's it raises `InputError`.

    `once` is that of a graph of one request, and empty for one that takes its features repeated.
    """
    layout = graph.layout
    # A graph has its own idea of the request: what is still declared in its layout it takes repeated.
    features = [replace(feature, request=False) for feature in layout.features]

    def run(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        rows = count_rows(layout.features, tensors) if layout.rows is not None else None
        if rows is not None and rows in layout.exempt:
            raise InputError(f"the artifact holds no graph that takes {rows} rows. {_CURE}")
        counts = {
            f.name: t.shape[f.axis] for f, t in zip(layout.features, tensors, strict=True)
            if f.role == "rows" and f.axis is not None and f.axis < t.ndim
        }  # fmt: skip
        if len(set(counts.values())) > 1:
            raise InputError(
                f"features have other numbers of rows than one another: {', '.join(f'{n!r} {c}' for n, c in counts.items())}"
            )
        for feature, tensor in zip(features, tensors, strict=True):
            if not fits(feature, tensor, rows):
                raise misfit(feature, tensor, f", and the artifact holds no graph that takes that. {_CURE}")
        return graph.answers(list(tensors))

    model = AsCalled(original, once, run, graph)
    return replace(original.with_model(model), entry="forward", batch=None).bare()
