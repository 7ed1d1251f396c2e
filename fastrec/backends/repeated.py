"""Sessions that take the features of the request in every row, where the batch holds them once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..inputs import Layout
from ..request import Once
from .base import Session

__all__ = ["Repeated"]


class Repeated(Session):
    """A session of the whole batch behind the face of one that takes one row of each request feature."""

    def __init__(self, session: Session, once: Once) -> None:
        self._session, self._once = session, once
        self.resident_bytes, self.translated = session.resident_bytes, session.translated

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run one batch."""
        return self._session(*self._once.all(tensors))

    def as_called(self, tensors: list[Tensor], layout: Layout) -> Any:
        """The answer to one flat batch, as the session gives it."""
        return self._session.as_called(self._once.all(tensors), layout)
