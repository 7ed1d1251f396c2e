"""What backends share that hand ONNX models to a library: who gathers rows, what runs in front, and how a session is opened."""

from __future__ import annotations

import abc
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

from torch import Tensor, fx

from ..errors import BackendUnavailable
from ..program import Program
from .base import Backend, Session, Translated
from .common import captured, failure
from .onnx_export import export_onnx
from .row_sums import has_codes
from .split import front_of, split_lookups, split_picks

__all__ = ["Front", "OnnxBackend"]

Front: TypeAlias = Callable[..., tuple[Tensor, ...]] | None
"""What torch computes in front of a session: flat inputs -> its own."""


@dataclass(frozen=True)
class OnnxBackend(Backend):
    """A library that runs ONNX models.

    `lookups` says who gathers embedding rows: "torch", before the session, or "session", inside it.
    """

    packages: ClassVar[Sequence[str]]
    """What it takes to open a session; to translate a graph, onnx and onnxscript as well."""

    lookups: Literal["torch", "session"] = "torch"

    @abc.abstractmethod
    def written(self, gm: fx.GraphModule, *, coded: bool) -> tuple[fx.GraphModule, bool]:
        """The graph as it is exported, and whether sums of few rows in front are rounded as those of many; `coded` says whether
        rows held as small integers are looked up. Raises `BackendError` for what the library does not run."""

    @abc.abstractmethod
    def session(self, translated: Translated, front: Front) -> Session:
        """The library's session of a model, with what runs in front of it."""

    def unavailable(self) -> str | None:
        """Why it cannot run here, or None."""
        return _missing((*self.packages, "onnx", "onnxscript"))

    @property
    def label(self) -> str:
        """The name, saying so when the lookups run inside."""
        return self.name if self.lookups == "torch" else f"{self.name} (lookups inside)"

    def compile(self, program: Program) -> Session:
        """Export the graph with free batch sizes and load it.

        Raises `BackendUnavailable` without the package, `BackendError` for a graph it cannot take.
        """
        return self.open(self.translate(program), program)

    def translate(self, program: Program) -> Translated:
        """The graph as an ONNX model, its free sizes free, its large constants outside, and what runs in front of it."""
        if reason := self.unavailable():
            raise BackendUnavailable(reason, backend=self.name)
        gm = captured(program, self.name)
        try:
            split = split_lookups(gm) if self.lookups == "torch" else split_picks(gm)
            rest, alike = self.written(gm if split.moved is None else split.dense, coded=has_codes(gm))
            return replace(export_onnx(rest, self.name, outside=True), front=split.moved, alike=alike)
        except Exception as error:  # whatever a foreign library raises, named
            raise failure(error, "cannot run the example", self.name) from error

    def open(self, translated: Translated, program: Program) -> Session:
        """The session of such a model. Raises as `compile` does."""
        if reason := _missing(self.packages):
            raise BackendUnavailable(reason, backend=self.name)
        try:
            session = self.session(
                translated, front_of(translated.front, program.batch, alike=translated.alike)
            )
            session(*program.batch)
            session.translated = translated
        except Exception as error:  # whatever a foreign library raises, named
            raise failure(error, "cannot run the example", self.name) from error
        return session


def _missing(packages: Sequence[str]) -> str | None:
    needed = list(dict.fromkeys(packages))
    for package in needed:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install {' '.join(needed)}"
    return None
