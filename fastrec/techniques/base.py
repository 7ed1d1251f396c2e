"""The one shape of a technique: settings, and `apply(program) -> Applied`."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from torch import fx, nn

from ..budget import Budget
from ..errors import TechniqueError
from ..places import placed
from ..program import Program

__all__ = ["Applied", "Change", "Skip", "Technique", "graph_of"]


@dataclass(frozen=True)
class Change:
    """One edit at one site.

    `rule` names what was done, `site` the module path or graph node it was done to, `detail` says it in
    a few words, and `added_bytes` is the size of the constants it created (tables, folded weights). `place` is where a node stands
    in the caller's code, "tower.mlp.0, ranker.py:41", where that is known.
    """

    rule: str
    site: str
    detail: str = ""
    added_bytes: int = 0
    place: str = ""

    @property
    def where(self) -> str:
        """The site and its place."""
        return placed(self.site, self.place)


@dataclass(frozen=True)
class Skip:
    """Something that was not done, and why; `place` as in a `Change`."""

    rule: str
    site: str
    reason: str
    place: str = ""

    @property
    def where(self) -> str:
        """The site and its place."""
        return placed(self.site, self.place)


@dataclass(frozen=True)
class Applied:
    """What a technique gives back: the model, its edits, and what it left alone with the reason."""

    model: nn.Module
    changes: tuple[Change, ...] = ()
    skipped: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class Technique(abc.ABC):
    """A way to make a model cheaper: frozen settings that never touch the program they are given.

    `level` says what `apply` expects: "module", the caller's model before capture, to be edited on
    `program.draft()`; or "graph", a captured `fx.GraphModule`. `changes` is empty exactly when nothing
    was done. While `exact` holds, outputs are equal up to float rounding. `fitted` says that numbers of the result come
    from the calibration batches, `modules` that a technique of graphs takes a model that could not be captured as well,
    and edits its modules on a draft; `cuts` that it takes parts out of the model, so that what is left without it is measured
    beside; `mends` that it brings answers back to the original's, so that those in front of it are judged after it; `saves` what it is
    for, which a search tries first.
    """

    name: ClassVar[str]
    level: ClassVar[Literal["module", "graph"]]
    fitted: ClassVar[bool] = False
    modules: ClassVar[bool] = False
    cuts: ClassVar[bool] = False
    mends: ClassVar[bool] = False
    saves: ClassVar[Literal["time", "bytes"]] = "time"

    @property
    @abc.abstractmethod
    def exact(self) -> bool:
        """Whether these settings keep the answer."""

    @property
    def promised(self) -> Mapping[str, tuple[float, float]]:
        """What the settings take for granted of numeric inputs, (least, largest) by name, for the guards to check: nothing, unless overridden."""
        return {}

    @abc.abstractmethod
    def apply(self, program: Program) -> Applied:
        """Make the model cheaper."""

    @classmethod
    def asked_by(cls, budget: Budget | None) -> Technique | None:  # noqa: ARG003 - for those who override it
        """The settings that serve where no recipe is given: its own if they are exact, unless overridden; None for none."""
        plain = cls()
        return plain if plain.exact else None

    def alternatives(self, changes: tuple[Change, ...]) -> dict[str, Technique]:  # noqa: ARG002 - for those who override it
        """Other settings worth measuring beside these, by name, after these made `changes`: none, unless overridden."""
        return {}

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - for those who override it
        """Settings that lose less on `program`, to which these made `changes`, the mildest last: none, unless overridden."""
        return ()

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """Settings from mild to strong."""
        return (cls(),)

    @classmethod
    def rungs(cls, program: Program) -> tuple[Self, ...]:  # noqa: ARG003 - for those who override it
        """The approximate settings that a search tries on a program, from mild to strong: those of the ladder, unless overridden."""
        return tuple(rung for rung in cls.ladder() if not rung.exact)


def graph_of(program: Program, technique: Technique) -> fx.GraphModule:
    """The graph of a captured program. Raises `TechniqueError` for one that was not captured."""
    if not isinstance(program.model, fx.GraphModule):
        raise TechniqueError("rewrites captured graphs: capture the program first", technique=technique.name)
    return program.model
