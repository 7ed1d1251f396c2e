"""Techniques in order, as plain data that travels as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InputError
from .plain import dumps, from_plain, loads, to_plain
from .techniques import TECHNIQUES, Technique

__all__ = ["Recipe"]

SCHEMA = 1


@dataclass(frozen=True)
class Recipe:
    """Techniques in the order they are applied.

    Example:
        >>> from fastrec.techniques import Fuse
        >>> recipe = Recipe((Fuse(),))
        >>> Recipe.from_json(recipe.to_json()) == recipe
        True
        >>> [technique.name for technique in recipe]
        ['fuse']
    """

    techniques: tuple[Technique, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.techniques, tuple):
            raise InputError(f"a recipe takes a tuple of techniques, got a {type(self.techniques).__name__}")
        for i, technique in enumerate(self.techniques):
            if not isinstance(technique, Technique):
                cure = "; make an instance of it" if isinstance(technique, type) else ""
                raise InputError(f"recipe.techniques[{i}] is not a technique: {technique!r}{cure}")

    def __iter__(self) -> Iterator[Technique]:
        return iter(self.techniques)

    def __len__(self) -> int:
        return len(self.techniques)

    @property
    def exact(self) -> bool:
        """Whether every technique keeps the answer."""
        return all(technique.exact for technique in self.techniques)

    @property
    def promised(self) -> dict[str, tuple[float, float]]:
        """What all techniques take for granted of numeric inputs, (least, largest) by name: where they meet.

        Raises `InputError` where two of them do not.
        """
        found: dict[str, tuple[float, float]] = {}
        for technique in self:
            for name, (low, high) in technique.promised.items():
                least, most = found.get(name, (low, high))
                found[name] = max(low, least), min(high, most)
                if found[name][0] > found[name][1]:
                    raise InputError(
                        f"recipe: {name!r} is declared from {low:g} to {high:g}, and from {least:g} to {most:g}: no number is in both"
                    )
        return found

    def to_plain(self) -> dict[str, Any]:
        """The recipe as data that JSON can hold; `InputError` at a setting that it cannot."""
        steps = [
            {"name": t.name, "settings": to_plain(t, f"recipe.techniques[{i}].settings")}
            for i, t in enumerate(self.techniques)
        ]
        return {"schema": SCHEMA, "techniques": steps}

    def to_json(self) -> str:
        """The recipe as a JSON text."""
        return dumps(self.to_plain())

    @classmethod
    def from_plain(cls, data: Any, *, techniques: Mapping[str, type[Technique]] = TECHNIQUES) -> Recipe:
        """The recipe that `to_plain` wrote; see `from_json`."""
        return cls.from_json(dumps(data), techniques=techniques)

    @classmethod
    def from_json(cls, text: str, *, techniques: Mapping[str, type[Technique]] = TECHNIQUES) -> Recipe:
        """The recipe that `to_json` wrote.

        `techniques` says which class a name stands for: `{**TECHNIQUES, "mine": Mine}` reads recipes with one of
        your own. Raises `InputError` at an unknown name, an unknown or ill-typed setting, or another schema.
        """
        written = from_plain(_Recipe, loads(text, "recipe", SCHEMA), "recipe")
        made = []
        for i, step in enumerate(written.techniques):
            where = f"recipe.techniques[{i}]"
            if step.name not in techniques:
                raise InputError(
                    f"{where} has an unknown name {step.name[:80]!r}; known are {sorted(techniques)}. "
                    "Pass `techniques=` for one of your own"
                )
            made.append(from_plain(techniques[step.name], dict(step.settings), f"{where}.settings"))
        return cls(tuple(made))


@dataclass(frozen=True)
class _Step:
    """One technique as written."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class _Recipe:
    """A recipe as written."""

    techniques: tuple[_Step, ...]
