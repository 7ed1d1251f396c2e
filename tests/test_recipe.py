"""Recipes: order, JSON, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from fastrec.arguments import read_recipe
from fastrec.errors import InputError
from fastrec.program import Program
from fastrec.recipe import Recipe
from fastrec.techniques import TECHNIQUES, Applied, Fuse, Technique


@dataclass(frozen=True)
class Halve(Technique):
    """A technique with settings of every kind JSON can hold."""

    name: ClassVar[str] = "halve"
    level: ClassVar[Literal["module", "graph"]] = "module"

    keep: float = 0.5
    layers: tuple[str, ...] = ()
    widths: tuple[tuple[str, int], ...] = ()
    seed: int | None = None
    mode: Literal["rows", "columns"] = "rows"

    @property
    def exact(self) -> bool:
        return self.keep == 1.0

    def apply(self, program: Program) -> Applied:
        return Applied(program.model)


KNOWN: Mapping[str, type[Technique]] = {**TECHNIQUES, "halve": Halve}
SETTINGS = Halve(0.25, ("a", "b"), (("a", 16),), 3, "columns")


def test_order_and_settings_survive_json() -> None:
    recipe = Recipe((SETTINGS, Fuse(), Halve()))
    back = Recipe.from_json(recipe.to_json(), techniques=KNOWN)
    assert back == recipe
    assert [technique.name for technique in back] == ["halve", "fuse", "halve"]
    assert len(back) == 3
    assert Recipe.from_plain(recipe.to_plain(), techniques=KNOWN) == recipe


def test_the_json_is_plain_data() -> None:
    settings = {"keep": 0.25, "layers": ["a", "b"], "widths": [["a", 16]], "seed": 3, "mode": "columns"}
    expected = {"schema": 1, "techniques": [{"name": "halve", "settings": settings}]}
    assert json.loads(Recipe((SETTINGS,)).to_json()) == expected


def test_exact_only_if_every_technique_is() -> None:
    assert Recipe().exact
    assert Recipe((Fuse(), Halve(keep=1.0))).exact
    assert not Recipe((Fuse(), Halve())).exact


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"name": "unheard", "settings": {}}, r"techniques\[1\] has an unknown name 'unheard'.*'fuse'"),
        ({"name": "os.system", "settings": {}}, "unknown name"),
        (
            {"name": "halve", "settings": {"kep": 0.5}},
            r"techniques\[1\]\.settings has unknown names \['kep'\].*'keep'",
        ),
        ({"name": "halve", "settings": {"keep": "0.5"}}, r"techniques\[1\]\.settings\.keep"),
        ({"name": "halve", "settings": {"mode": "both"}}, r"settings\.mode: expected one of"),
        ({"name": "halve", "settings": [1]}, r"techniques\[1\]\.settings"),
        ({"name": "halve"}, r"techniques\[1\] lacks \['settings'\]"),
        ({"name": "halve", "settings": {}, "code": "x"}, r"techniques\[1\] has unknown names \['code'\]"),
        ("halve", r"techniques\[1\]"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(step: object, message: str) -> None:
    data = {"schema": 1, "techniques": [{"name": "fuse", "settings": {}}, step]}
    with pytest.raises(InputError, match=message):
        Recipe.from_json(json.dumps(data), techniques=KNOWN)


def test_another_schema_and_other_text_are_refused() -> None:
    with pytest.raises(InputError, match="schema 2"):
        Recipe.from_json('{"schema": 2, "techniques": []}')
    with pytest.raises(InputError, match="not strict JSON"):
        Recipe.from_json("fuse")


def test_a_setting_json_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match=r"recipe\.techniques\[0\]\.settings\.keep is nan"):
        Recipe((Halve(keep=float("nan")),)).to_json()


@pytest.mark.parametrize("techniques", [(Fuse,), ("fuse",), [Fuse()]])
def test_only_techniques_make_a_recipe(techniques: tuple[Technique, ...]) -> None:
    with pytest.raises(InputError, match="technique"):
        Recipe(techniques)


def test_without_a_recipe_what_is_exact_and_saves_time_is_done() -> None:
    made = read_recipe(None)
    assert Fuse() in made.techniques and made.exact
    assert {"share_embeddings", "relate_tables"}.isdisjoint(technique.name for technique in made)


def test_every_technique_stands_under_its_own_name_and_survives_json() -> None:
    assert TECHNIQUES["fuse"] is Fuse
    for name, kind in TECHNIQUES.items():
        assert kind.name == name
        recipe = Recipe(kind.ladder())
        assert Recipe.from_json(recipe.to_json()) == recipe
