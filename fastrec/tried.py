"""One recipe that was tried while another was looked for, and which of them nothing beats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import InputError
from .losses import Accuracy
from .measure import Ratio
from .plain import from_plain, to_plain
from .recipe import Recipe
from .techniques import TECHNIQUES, Technique
from .techniques.settings import named
from .wording import times

__all__ = ["Outcome", "Tried", "pareto", "said"]

Outcome = Literal["kept", "slower", "refused", "nothing to do", "failed", "not tried"]


@dataclass(frozen=True)
class _Seen:
    """What plain data can be read into by type alone."""

    speedup: Ratio | None
    gain: Ratio | None
    accuracy: tuple[Accuracy, ...]
    bytes: int | None
    outcome: Outcome
    reason: str
    seconds: float


@dataclass(frozen=True)
class Tried:
    """A recipe, what was measured of it, and what became of it.

    `speedup` is that over the original and `gain` that over the best recipe until then, geometric means over the numbers of rows,
    each by the fastest session there; `bytes` are those of its tensors. What is refused by the budget is not timed.
    "slower" is whatever was not measured to be better than the best until then.
    """

    recipe: Recipe
    outcome: Outcome
    reason: str = ""
    speedup: Ratio | None = None
    gain: Ratio | None = None
    accuracy: tuple[Accuracy, ...] = ()
    bytes: int | None = None
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """The recipe in a few words."""
        return said(self.recipe)

    @property
    def lost(self) -> float:
        """What was lost of the metric that the budget names first."""
        return self.accuracy[0].value if self.accuracy else 0.0

    def __str__(self) -> str:
        gained = "" if self.speedup is None else f", {times(self.speedup.value)}"
        return f"{self.label}: {self.outcome}{gained}{f' ({self.reason})' if self.reason else ''}"

    def to_plain(self) -> dict[str, Any]:
        """This as data that JSON can hold."""
        seen = {name: to_plain(getattr(self, name), f"tried.{name}") for name in _Seen.__annotations__}
        return {"recipe": self.recipe.to_plain(), **seen}

    @classmethod
    def from_plain(cls, data: Any, *, techniques: Mapping[str, type[Technique]] = TECHNIQUES) -> Tried:
        """What `to_plain` wrote. Raises `InputError` at anything that does not fit."""
        if not isinstance(data, dict) or "recipe" not in data:
            raise InputError(f"tried: expected a recipe and what was seen of it, got {data!r:.80}")
        recipe = Recipe.from_plain(data["recipe"], techniques=techniques)
        seen = from_plain(_Seen, {name: value for name, value in data.items() if name != "recipe"}, "tried")
        return cls(recipe, **{name: getattr(seen, name) for name in _Seen.__annotations__})


def said(recipe: Recipe) -> str:
    """What a recipe approximates, with the settings that are not defaults; "exact" where nothing."""
    return ", ".join(named(technique) for technique in recipe if not technique.exact) or "exact"


def pareto(tried: Iterable[Tried]) -> tuple[Tried, ...]:
    """Those within the budget that no other one beats in speed without losing more, the slowest first."""
    within = [one for one in tried if one.speedup is not None and one.outcome in ("kept", "slower")]
    front: list[Tried] = []
    for one in sorted(within, key=lambda one: (-_speed(one), one.lost)):
        if not front or one.lost < front[-1].lost:
            front.append(one)
    return tuple(reversed(front))


def _speed(tried: Tried) -> float:
    return 0.0 if tried.speedup is None else tried.speedup.value
