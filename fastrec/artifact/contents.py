"""What an artifact holds, in memory: enough to make the compressed model again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..backends import Session, Source
from ..guards import Guard
from ..plan import Plan
from ..program import Program
from ..recipe import Recipe
from ..report import Report
from ..request import Once
from .manifest import Modules

__all__ = ["Contents", "Loaded"]


@dataclass(frozen=True)
class Contents:
    """The parts of a compressed model.

    `original` serves what the sessions do not, `sources` says what each session is made from, `program` is the plain form of
    what serves; `apart` says that rows that are not finite are kept apart, `modules` which model it was
    loaded without.
    """

    original: Program
    sources: Mapping[str, Source]
    plan: Plan | None
    guard: Guard | None
    once: Once
    apart: bool
    program: Program | None
    exact: bool
    report: Report
    recipe: Recipe
    modules: Modules | None = None


@dataclass(frozen=True)
class Loaded:
    """Contents read from an artifact, its sessions open, and notes of what is otherwise than where it was saved.

    `digest` is that of the manifest: it says which artifact this is. `example` is the drawn batch as the model takes it, `answers` what
    each session, and the original as a graph, gave to it where it was saved.
    """

    contents: Contents
    sessions: Mapping[str, Session]
    notes: tuple[str, ...]
    digest: str
    example: Sequence[Tensor] | None = None
    answers: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
