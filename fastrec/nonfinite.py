"""Rows with numbers that are not finite, kept apart: int8 kernels give such rows scores that look like any other.

    answers[n] = original(x)[n]  where x[n] holds NaN or an infinity,   session(x with 0 in place of those)[n]  elsewhere

so the other rows are what they would be in a clean batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .errors import InputError
from .inputs import Feature, Layout
from .program import Answers, Program

__all__ = ["Apart", "spoilt", "spoilt_notes"]


class Apart:
    """Answers flat batches with a session, and rows that are not finite with the original.

    Where answers do not count rows, or one row's depends on others, a batch with such a row goes to the original
    whole, as does a request that is not finite itself. Cost: one pass over the floats.
    """

    def __init__(self, layout: Layout) -> None:
        self._floats = [(i, f) for i, f in enumerate(layout.features) if f.dtype.is_floating_point]
        self._axes = layout.output_axes
        self._by_row = layout.independent and layout.rows is not None and None not in layout.output_axes

    def clean(self, flat: list[Tensor]) -> bool:
        """Whether every number of the batch is finite."""
        return all(bool(flat[index].isfinite().all()) for index, _ in self._floats)

    def __call__(self, flat: list[Tensor], session: Answers, original: Answers) -> Sequence[Tensor]:
        """The answers to one flat batch, which has one row of each request feature."""
        bad: Tensor | None = None
        whole = False
        made = list(flat)
        for index, feature in self._floats:
            finite = flat[index].isfinite()
            if bool(finite.all()):
                continue
            made[index] = torch.where(finite, flat[index], 0)
            rows = _rows(~finite, feature)
            whole = whole or rows is None
            bad = rows if bad is None or rows is None else bad | rows
        if bad is None and not whole:
            return session(flat)
        before = original(flat)
        if whole or bad is None or not self._by_row:
            return before
        merged = []
        for answer, theirs, axis in zip(session(made), before, self._axes, strict=True):
            shape = [1] * answer.dim()
            shape[axis or 0] = -1
            merged.append(torch.where(bad.reshape(shape), theirs, answer))
        return merged


def _rows(bad: Tensor, feature: Feature) -> Tensor | None:
    """Which rows hold a bad element, None where it is not a row's alone."""
    if feature.role != "rows" or feature.request is True:
        return None
    if isinstance(feature.request, tuple) and bool(bad[:, list(feature.request)].any()):
        return None
    return bad.movedim(feature.axis or 0, 0).flatten(1).any(1) if bad.dim() > 1 else bad


def spoilt(model: nn.Module) -> str:
    """The name of the first tensor that no training should give, or nothing: NaN in floats, infinity in a parameter (masks may hold it)."""
    for name, parameter in model.named_parameters():
        if _is_dense(parameter) and not bool(parameter.isfinite().all()):
            return name
    for name, buffer in model.named_buffers():
        if _is_dense(buffer) and bool(buffer.isnan().any()):
            return name
    return ""


def spoilt_notes(program: Program) -> list[str]:
    """What is no number in a model's weights, and so in its answers to the example, in words, or nothing.

    Raises `InputError` where all that it answers is NaN: any graph answers that, so none could be checked. Cost: a pass over the
    tensors, and a run.
    """
    odd, flat = spoilt(program.model), program.flat(program.batch)
    private = program.private()
    answers = private.answers(flat)
    given = any(_is_dense(tensor) and bool(tensor.isnan().any()) for tensor in flat)
    numbers = sum(answer.numel() for answer in answers)
    bad = sum(int(answer.isnan().sum()) for answer in answers if _is_dense(answer))
    why = f"{odd!r} of the model holds NaN or infinity: look at how it was trained"
    if bad and bad == numbers:
        other = "the batch holds NaN: give one without" if given else "look at what it computes"
        raise InputError(
            f"the model answers the example batch with NaN alone ({bad:,} of {numbers:,} numbers), which says of no graph whether it is right: "
            f"{why if odd else other}"
        )
    told = f"{bad:,} of {numbers:,} numbers in its answers to the example are NaN"
    if odd:
        return [f"{why}. {told}" if bad else f"{why}. No answer to the example is NaN, others may be"]
    return [f"{told}, though the batch and its weights hold none"] if bad and not given else []


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor holds floats that torch looks through: not every kind of sparse ones, nor of one byte each."""
    return tensor.is_floating_point() and tensor.layout is torch.strided and tensor.element_size() > 1
