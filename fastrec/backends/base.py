"""The one shape of a backend: settings, and `compile(program) -> Session`."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx

from ..inputs import Layout
from ..program import Program

__all__ = ["Backend", "Session", "Source", "Translated"]


class Session(abc.ABC):
    """A compiled program, called with the flat inputs of the graph, returning its flat outputs.

    Calls are thread-safe. `resident_bytes` is what the session holds beyond the tensors it shares
    with the graph it was compiled from (weights copied into another library, packed copies), `translated`
    what it was opened from, which an artifact keeps.
    """

    resident_bytes: int = 0
    translated: Translated | None = None

    @abc.abstractmethod
    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run one batch."""

    def as_called(self, tensors: list[Tensor], layout: Layout) -> Any:
        """The answer to one flat batch, in the structure of the model's."""
        return layout.result(self(*tensors))


@dataclass(frozen=True)
class Translated:
    """A program in the form that a library loads: an ONNX model, and what torch runs in front of it.

    `inputs` are the model's in call order, `constants` what it expects from outside by name, `copied_bytes` what a session
    will hold of its own. `front` is the graph of what runs before (None where nothing does), `alike` has its sums of few
    rows rounded as those of many are.
    """

    proto: bytes
    inputs: tuple[str, ...]
    constants: Mapping[str, Tensor]
    copied_bytes: int
    front: fx.GraphModule | None = None
    alike: bool = False


@dataclass(frozen=True)
class Backend(abc.ABC):
    """A way to run a captured graph: frozen settings, inert until `compile`.

    `modules` says that it runs models that could not be captured as well, where a technique edited their modules;
    `own_threads` that its sessions have threads beside torch's, which a forked process does not have.
    """

    name: ClassVar[str]
    modules: ClassVar[bool] = False
    own_threads: ClassVar[bool] = False

    @abc.abstractmethod
    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine (with the cure), or None when it can."""

    @abc.abstractmethod
    def compile(self, program: Program) -> Session:
        """Compile `program.model`, an `fx.GraphModule`, for any number of rows from 1.

        Raises `BackendUnavailable` when its package is missing and `BackendError` when it cannot run
        this graph. Uses `torch.get_num_threads()` threads, as read when it is called.
        """

    def translate(self, program: Program) -> Translated | None:  # noqa: ARG002 - for those who override it
        """What a session is opened from, to be kept; None where the graph itself is compiled again.

        Raises as `compile` does.
        """
        return None

    def open(self, translated: Translated, program: Program) -> Session:  # noqa: ARG002 - for those who override it
        """The session that `compile` gives, from what `translate` gave of the program."""
        return self.compile(program)

    def plain(self, program: Program) -> bool:  # noqa: ARG002 - for those who override it
        """Whether it would run reference operators of the program as they are, which is slow."""
        return False

    @property
    def label(self) -> str:
        """The name with the settings that differ from the default, for reports."""
        return self.name


@dataclass(frozen=True)
class Source:
    """What a session was compiled from, by whom; `whole` says that it takes the request's features repeated for every row."""

    backend: Backend
    program: Program
    whole: bool = False
