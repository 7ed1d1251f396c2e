"""Which recipes are tried, and which is kept: over models whose trials are a formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrec.losses import Accuracy
from fastrec.measure import Ratio
from fastrec.plan import WORTH
from fastrec.recipe import Recipe
from fastrec.search.order import search
from fastrec.techniques import (
    CastLinears,
    Fuse,
    PruneNeurons,
    QuantizeLinears,
    QuantizeTables,
    Recover,
    Technique,
)
from fastrec.tried import Tried, pareto

START = Recipe((Fuse(),))
TABLES, LINEARS = (QuantizeTables(16), QuantizeTables(8)), (QuantizeLinears(),)
PRUNE = (PruneNeurons(0.75), PruneNeurons(0.5), PruneNeurons(0.25))
LADDERS = [[PRUNE, (Recover(),), LINEARS], [TABLES]]


class Model:
    """Trials by a formula: techniques multiply speed and add losses; what brings answers back leaves a tenth of those in front."""

    def __init__(
        self, speed: Mapping[Technique, float], loss: Mapping[Technique, float], allowed: float = 1.0
    ) -> None:
        self.speed, self.loss, self.allowed = dict(speed), dict(loss), allowed
        self.order: list[Recipe] = []

    def value(self, recipe: Recipe) -> float:
        return math.prod(self.speed.get(one, 1.0) for one in recipe)

    def lost(self, recipe: Recipe) -> float:
        lost = 0.0
        for one in recipe:
            lost = 0.1 * lost if one.mends else lost + self.loss.get(one, 0.0)
        return lost

    def __call__(self, recipe: Recipe, best: Recipe) -> Tried:
        self.order.append(recipe)
        new = [one for one in recipe if one not in best.techniques and not one.exact and not one.mends]
        if any(one not in self.speed for one in new):
            return Tried(recipe, "nothing to do", "no site")
        lost = self.lost(recipe)
        verdict = "certified" if lost <= self.allowed else "exceeded"
        accuracy = (Accuracy("auc", 0.8, 0.8 - lost, lost, lost, self.allowed, verdict, 1000, None),)
        if lost > self.allowed:
            return Tried(recipe, "refused", "too much", accuracy=accuracy)
        speed, gain = self.value(recipe), self.value(recipe) / self.value(best)
        outcome = "kept" if gain >= WORTH else "slower"
        return Tried(recipe, outcome, "", Ratio(speed, speed, speed, 9), Ratio(gain, gain, gain, 9), accuracy)


def never(share: float) -> bool:
    return False


def lossy(recipe: Recipe) -> set[Technique]:
    return {one for one in recipe if not one.exact}


def test_what_gains_together_is_found_and_in_order_of_application() -> None:
    model = Model({TABLES[0]: 1.1, TABLES[1]: 1.3, LINEARS[0]: 2.0, PRUNE[0]: 1.2}, {})
    best, tried = search(START, LADDERS, model, never)
    assert [type(one) for one in best] == [PruneNeurons, Fuse, QuantizeTables, QuantizeLinears]
    assert lossy(best) == {TABLES[1], LINEARS[0], PRUNE[0]}
    assert [one.recipe for one in tried] == model.order


def test_each_technique_is_tried_alone_first_whatever_the_best_is() -> None:
    model = Model({PRUNE[0]: 1.5, LINEARS[0]: 2.0}, {})
    search(START, LADDERS, model, never)
    # The mildest of each before the next of any, group by group.
    assert [lossy(recipe) for recipe in model.order[:4]] == [
        {PRUNE[0]},
        {LINEARS[0]},
        {PRUNE[1]},
        {TABLES[0]},
    ]


def test_one_that_spoils_another_does_not_join_it() -> None:
    class Spoiling(Model):
        def value(self, recipe: Recipe) -> float:
            # Fewer units make the product of codes not worth it.
            both = {PRUNE[0], LINEARS[0]} <= set(recipe)
            return 1.4 if both else super().value(recipe)

    best, _ = search(START, LADDERS, Spoiling({PRUNE[0]: 1.5, LINEARS[0]: 2.0}, {}), never)
    assert lossy(best) == {LINEARS[0]}


def test_what_is_refused_is_not_made_stronger_but_tried_with_what_brings_answers_back() -> None:
    model = Model(dict.fromkeys(PRUNE, 1.5) | {PRUNE[2]: 3.0}, {PRUNE[0]: 0.5, PRUNE[1]: 2.0, PRUNE[2]: 5.0})
    best, tried = search(START, LADDERS, model, never)
    assert lossy(best) == {PRUNE[2], Recover()}
    refused = [one.recipe for one in tried if one.outcome == "refused"]
    assert refused == [Recipe((PRUNE[1], Fuse()))]


def test_losses_that_add_up_are_met_by_milder_settings() -> None:
    model = Model(
        {TABLES[0]: 1.2, TABLES[1]: 1.4, LINEARS[0]: 2.0}, {TABLES[0]: 0.2, TABLES[1]: 0.6, LINEARS[0]: 0.7}
    )
    best, _ = search(START, [[TABLES, LINEARS]], model, never)
    assert lossy(best) == {TABLES[0], LINEARS[0]}


def test_what_another_made_idle_is_left_out_again() -> None:
    class Overlapping(Model):
        def value(self, recipe: Recipe) -> float:
            # Tables gained 1.5 alone, and bfloat16 beside them; with linears in integers as well they gain nothing.
            if {TABLES[0], CAST, PRUNE[0]} <= set(recipe):
                return 4.0
            return 3.96 if {CAST, PRUNE[0]} <= set(recipe) else super().value(recipe)

    CAST = CastLinears()
    ladders = [[PRUNE[:1], TABLES[:1], (CAST,)]]
    model = Overlapping({TABLES[0]: 1.5, CAST: 1.4, PRUNE[0]: 1.3}, {})
    best, tried = search(START, ladders, model, never)
    assert lossy(best) == {CAST, PRUNE[0]}
    assert [one.reason for one in tried if one.recipe == best] == ["about as good without QuantizeTables"]


def test_nothing_faster_leaves_the_start() -> None:
    best, tried = search(START, LADDERS, Model(dict.fromkeys((*PRUNE, *TABLES, *LINEARS), 0.9), {}), never)
    assert best == START
    assert {one.outcome for one in tried} == {"slower"}


def test_when_it_is_late_the_rest_is_noted() -> None:
    model = Model(dict.fromkeys((*PRUNE, *TABLES, *LINEARS), 1.5), {})
    best, tried = search(START, LADDERS, model, lambda share: len(model.order) >= 2)
    assert len(model.order) == 2
    assert lossy(best) == {PRUNE[0]}
    assert {one.outcome for one in tried[2:]} == {"not tried"}
    assert search(START, LADDERS, model, lambda share: True)[0] == START


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_is_as_good_as_any_single_technique_and_within_what_is_allowed(data: st.DataObject) -> None:
    rungs = [*PRUNE, *TABLES, *LINEARS]
    speed = {one: data.draw(st.floats(0.5, 3.0)) for one in rungs}
    loss = {one: data.draw(st.floats(0.0, 1.5)) for one in rungs}
    for ladder in (PRUNE, TABLES):  # stronger settings lose more
        for one, value in zip(ladder, sorted(loss[one] for one in ladder), strict=True):
            loss[one] = value
    model = Model(speed, loss)
    best, tried = search(START, LADDERS, model, never)
    assert model.lost(best) <= model.allowed
    singles = [
        model.value(one.recipe)
        for one in tried
        if one.outcome in ("kept", "slower") and len(lossy(one.recipe)) == 1
    ]
    # What is given away for one technique fewer, at most three times, and what is not worth another path.
    assert model.value(best) * WORTH >= 0.98**3 * max([1.0, *singles])
    assert len({one.recipe.to_json() for one in tried}) == len(tried)


def test_the_same_outcomes_lead_to_the_same_recipe() -> None:
    speed = dict(zip([*PRUNE, *TABLES, *LINEARS], (1.1, 1.2, 1.3, 1.05, 1.2, 1.5), strict=True))
    loss = dict(zip([*PRUNE, *TABLES, *LINEARS], (0.1, 0.4, 1.2, 0.1, 0.3, 0.5), strict=True))
    assert search(START, LADDERS, Model(speed, loss), never) == search(
        START, LADDERS, Model(speed, loss), never
    )


def test_a_best_that_is_not_confirmed_is_built_again_without_all_of_its_parts_together() -> None:
    model = Model({TABLES[0]: 1.2, LINEARS[0]: 2.0, PRUNE[0]: 1.5}, {})
    asked: list[set[Technique]] = []

    def confirmed(recipe: Recipe) -> bool:
        asked.append(lossy(recipe))
        return PRUNE[0] not in recipe.techniques

    best, tried = search(START, LADDERS, model, never, confirmed)
    assert asked[0] == {TABLES[0], LINEARS[0], PRUNE[0]}
    assert asked[1] == {LINEARS[0], PRUNE[0]} and len(asked) == 3
    assert lossy(best) == {LINEARS[0], TABLES[0]}
    assert len({one.recipe.to_json() for one in tried}) == len(tried)


def test_where_none_is_confirmed_the_first_comes_back() -> None:
    model = Model({TABLES[0]: 1.2, LINEARS[0]: 2.0, PRUNE[0]: 1.5}, {})
    best, _ = search(START, LADDERS, model, never, lambda _: False)
    assert lossy(best) == {TABLES[0], LINEARS[0], PRUNE[0]}
    single = search(START, [[LINEARS]], Model({LINEARS[0]: 2.0}, {}), never, lambda _: False)[0]
    assert lossy(single) == {LINEARS[0]}


def tried(speed: float, lost: float, outcome: str = "kept") -> Tried:
    accuracy = (Accuracy("auc", 0.8, 0.8 - lost, lost, lost, 1.0, "certified", 1000, None),)
    return Tried(START, outcome, "", Ratio(speed, speed, speed, 9), None, accuracy)  # type: ignore[arg-type]  # an outcome by its word


def test_of_what_was_tried_only_what_nothing_beats_is_on_the_front() -> None:
    slow, fast, both, beaten = tried(1.5, 0.0), tried(3.0, 0.2), tried(2.0, 0.1), tried(1.9, 0.1)
    refused = replace(tried(9.0, 5.0), outcome="refused")
    assert pareto([fast, beaten, slow, refused, both]) == (slow, both, fast)
    assert pareto([]) == ()


def test_what_was_tried_survives_plain_data() -> None:
    one = replace(tried(1.5, 0.1), gain=Ratio(1.1, 1.0, 1.2, 5), bytes=100, seconds=2.0, reason="x")
    assert Tried.from_plain(one.to_plain()) == one
    assert Tried.from_plain(Tried(START, "nothing to do", "no site").to_plain()).speedup is None
    with pytest.raises(Exception, match="outcome"):
        Tried.from_plain({**one.to_plain(), "outcome": "won"})
