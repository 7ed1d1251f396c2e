"""A model that could not be captured, run as its own code says."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..inputs import Layout
from ..ops.layers import Int8Linear
from ..program import Program
from .base import Session

__all__ = ["ModelSession", "packed_session"]


class ModelSession(Session):
    """A model behind the face of a session: flat tensors in, flat tensors out. As thread-safe as the model is."""

    def __init__(self, program: Program) -> None:
        self._program = program.bare()

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run one batch."""
        return tuple(self._program.answers(tensors))

    def as_called(self, tensors: list[Tensor], layout: Layout) -> Any:  # noqa: ARG002 - the model knows its own
        """The model's own answer: what it holds beside tensors, and its very form, may depend on the batch."""
        return self._program.called(tensors)


def packed_session(program: Program) -> ModelSession:
    """A session of a model that could not be captured, its linear maps in 8-bit integers packed."""
    model = program.draft()
    session = ModelSession(program.with_model(model))
    session.resident_bytes = sum(layer.pack() for layer in model.modules() if isinstance(layer, Int8Linear))
    return session
