"""The one shape of a backend: settings, and `compile(program) -> Session`."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..inputs import Layout
from ..program import Program

__all__ = ["Backend", "Session"]


class Session(abc.ABC):
    """A compiled program, called with the flat inputs of the graph, returning its flat outputs.

    Calls are thread-safe. `resident_bytes` is what the session holds beyond the tensors it shares
    with the graph it was compiled from (weights copied into another library, packed copies).
    """

    resident_bytes: int = 0

    @abc.abstractmethod
    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run one batch."""

    def as_called(self, tensors: list[Tensor], layout: Layout) -> Any:
        """The answer to one flat batch, in the structure of the model's."""
        return layout.result(self(*tensors))


@dataclass(frozen=True)
class Backend(abc.ABC):
    """A way to run a captured graph: frozen settings, inert until `compile`.

    `modules` says that it runs models that could not be captured as well, where a technique edited their modules.
    """

    name: ClassVar[str]
    modules: ClassVar[bool] = False

    @abc.abstractmethod
    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine (with the cure), or None when it can."""

    @abc.abstractmethod
    def compile(self, program: Program) -> Session:
        """Compile `program.model`, an `fx.GraphModule`, for any number of rows from 1.

        Raises `BackendUnavailable` when its package is missing and `BackendError` when it cannot run
        this graph. Uses `torch.get_num_threads()` threads, as read when it is called.
        """

    def plain(self, program: Program) -> bool:  # noqa: ARG002 - for those who override it
        """Whether it would run reference operators of the program as they are, which is slow."""
        return False

    @property
    def label(self) -> str:
        """The name with the settings that differ from the default, for reports."""
        return self.name
