"""Trials by several workers, simulated: whichever is over first, and whichever is lost, the search decides as if all were made here."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrec.recipe import Recipe
from fastrec.search import spread as spread_module
from fastrec.search.order import search
from fastrec.search.resume import Recorded
from fastrec.search.spread import Spread
from fastrec.techniques import Fuse
from fastrec.tried import Tried

from .test_order import LADDERS, LINEARS, PRUNE, START, TABLES, Model, never
from .test_resume import OF, model

Asked = tuple[Recipe, Recipe]
FIRST = Recipe((Fuse(), TABLES[0]))
SECOND = Recipe((Fuse(), LINEARS[0]))
THIRD = Recipe((PRUNE[0], Fuse()))


class Over(NamedTuple):
    """What `concurrent.futures.wait` gives."""

    done: set[Future[Tried]]


class Cluster:
    """Workers whose trials are a formula; whenever one is waited for, `turn` says which is over, and `lost` whether its worker is."""

    def __init__(
        self,
        formula: Model,
        count: int,
        turn: Callable[[int], int] = lambda count: 0,
        lost: Callable[[Asked], bool] = lambda asked: False,
    ) -> None:
        self.formula, self.turn, self.lost = formula, turn, lost
        self.busy: dict[Future[Tried], tuple[int, Asked]] = {}
        self.begun: list[tuple[int, Asked]] = []
        self.most, self.gone = 0, set[int]()
        self.workers = [self._worker(number) for number in range(count)]

    def _worker(self, number: int) -> Callable[[Recipe, Recipe], Future[Tried]]:
        def worker(recipe: Recipe, best: Recipe) -> Future[Tried]:
            assert number not in self.gone, "a worker that was lost was asked again"
            assert number not in [one for one, _ in self.busy.values()], "two trials on the same cores"
            future: Future[Tried] = Future()
            self.busy[future] = number, (recipe, best)
            self.begun.append((number, (recipe, best)))
            self.most = max(self.most, len(self.busy))
            return future

        return worker

    def wait(self, futures: Collection[Future[Tried]], return_when: str) -> Over:
        assert set(futures) == set(self.busy)
        if not self.busy:
            return Over(set())
        future = [*self.busy][self.turn(len(self.busy))]
        number, asked = self.busy.pop(future)
        if self.lost(asked):
            self.gone.add(number)
            future.set_exception(RuntimeError("the process ended"))
        else:
            future.set_result(self.formula(*asked))
        return Over({future})

    @contextmanager
    def spread(self, here: Recorded, notes: list[str]) -> Iterator[Spread]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spread_module, "wait", self.wait)
            yield Spread(here, self.workers, notes)


def alone(trial: Any) -> Recorded:
    return Recorded(None, {}, trial)


def unused(recipe: Recipe, best: Recipe) -> Tried:
    pytest.fail("a trial was made here")


KINDS = [*PRUNE, *TABLES, *LINEARS]
FACTORS = st.lists(st.floats(0.8, 3.0), min_size=len(KINDS), max_size=len(KINDS))
LOSSES = st.lists(st.floats(0.0, 1.2), min_size=len(KINDS), max_size=len(KINDS))


@settings(max_examples=150, deadline=None)
@given(speed=FACTORS, loss=LOSSES, count=st.integers(1, 4), data=st.data())
def test_the_same_outcomes_lead_to_the_same_recipe_wherever_and_whenever_trials_are_made(
    speed: list[float], loss: list[float], count: int, data: st.DataObject
) -> None:
    formula = (dict(zip(KINDS, speed, strict=True)), dict(zip(KINDS, loss, strict=True)))
    refused = data.draw(st.integers(0, 2))  # looks at the best that do not confirm it
    looks: list[Recipe] = []

    def confirmed(recipe: Recipe) -> bool:
        looks.append(recipe)
        return len(looks) % 3 >= refused

    straight = search(START, LADDERS, Model(*formula), never, confirmed)
    looks.clear()
    cluster = Cluster(
        Model(*formula), count, turn=lambda busy: data.draw(st.integers(0, busy - 1)),
    )  # fmt: skip
    with cluster.spread(alone(unused), []) as spread:
        assert search(START, LADDERS, spread, never, confirmed, spread.ahead) == straight
    asked = [one for _, one in cluster.begun]
    assert len(set(map(str, asked))) == len(asked), "a trial was made twice"


@settings(max_examples=100, deadline=None)
@given(speed=FACTORS, count=st.integers(1, 4), data=st.data())
def test_nothing_is_lost_with_the_workers(speed: list[float], count: int, data: st.DataObject) -> None:
    formula: tuple[Any, Any] = (dict(zip(KINDS, speed, strict=True)), {})
    straight = search(START, LADDERS, Model(*formula), never)
    ended: set[str] = set()

    def lost(asked: Asked) -> bool:
        # Each recipe ends one worker at most, so that it is not taken for what ends them.
        ends = asked[0].to_json() not in ended and data.draw(st.booleans())
        ended.update([asked[0].to_json()] if ends else [])
        return ends

    here, notes = Model(*formula), list[str]()
    cluster = Cluster(
        Model(*formula), count, turn=lambda busy: data.draw(st.integers(0, busy - 1)), lost=lost
    )
    with cluster.spread(alone(here), notes) as spread:
        assert search(START, LADDERS, spread, never, ahead=spread.ahead) == straight
    assert len(notes) == len(cluster.gone)
    assert not here.order or len(cluster.gone) == count


def test_as_many_are_made_at_once_as_there_are_workers() -> None:
    cluster = Cluster(model(), 3)
    with cluster.spread(alone(unused), []) as spread:
        search(START, LADDERS, spread, never, ahead=spread.ahead)
    assert cluster.most == 3


def test_without_workers_they_are_made_here() -> None:
    formula = model()
    spread = Spread(alone(formula), [], [])
    assert search(START, LADDERS, spread, never, ahead=spread.ahead) == search(START, LADDERS, model(), never)
    assert formula.order


def test_nothing_more_is_begun_when_it_is_late() -> None:
    cluster = Cluster(model(), 2)
    with cluster.spread(alone(unused), []) as spread:
        _, tried = search(START, LADDERS, spread, lambda share: True, ahead=spread.ahead)
    assert not cluster.begun
    assert {one.outcome for one in tried} == {"not tried"}


def test_what_is_known_by_then_counts_when_it_is_late() -> None:
    cluster = Cluster(model(), 2, turn=lambda busy: busy - 1)
    here = alone(unused)
    with cluster.spread(here, []) as spread:

        def late(share: float) -> bool:
            return len(cluster.begun) > 2

        _, tried = search(START, LADDERS, spread, late, ahead=spread.ahead, known=here.has)
    made = [one.recipe for one in tried if one.outcome != "not tried"]
    # The first was over last: the other worker made all that could come next, and they count.
    assert set(map(str, made)) == {str(recipe) for _, (recipe, _) in cluster.begun}
    assert {FIRST, SECOND, THIRD} < set(made)
    assert {one.outcome for one in tried if one.recipe not in made} == {"not tried"}


def test_what_ended_two_workers_does_not_end_this_process_too() -> None:
    notes: list[str] = []
    cluster = Cluster(model(), 2, lost=lambda asked: asked[0] == FIRST)
    with cluster.spread(alone(unused), notes) as spread:
        seen = spread(FIRST, START)
    assert (seen.outcome, seen.reason) == ("failed", "2 workers were lost as they tried it")
    assert len(notes) == 2 and "QuantizeTables" in notes[0] and "1 make the other trials" in notes[0]
    assert "made in this process" in notes[1] and "the process ended" in notes[1]


def test_a_worker_that_takes_nothing_is_lost() -> None:
    def gone(recipe: Recipe, best: Recipe) -> Future[Tried]:
        raise ConnectionError("no cluster is there")

    formula, notes = model(), list[str]()
    spread = Spread(alone(formula), [gone], notes)
    spread.ahead([SECOND], START)
    assert spread(FIRST, START) == model()(FIRST, START)
    assert formula.order == [FIRST]
    assert len(notes) == 1 and "no cluster is there" in notes[0]


def test_each_outcome_is_written_as_it_arrives(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    # The second is over first.
    cluster = Cluster(model(), 2, turn=lambda busy: busy - 1)
    with cluster.spread(Recorded(path, OF, unused), []) as spread:
        spread.ahead([FIRST, SECOND], START)
        written: list[int] = []
        formula = cluster.formula

        def counted(recipe: Recipe, best: Recipe) -> Tried:
            written.append(len(path.read_text().splitlines()) - 1)
            return formula(recipe, best)

        cluster.formula = counted  # type: ignore[assignment]
        spread(FIRST, START)
    assert written == [0, 1]
    first, *lines = path.read_text().splitlines()
    assert "of" in json.loads(first)
    assert [Tried.from_plain(json.loads(line)["tried"]).recipe for line in lines] == [SECOND, FIRST]
    # What was made and never asked for is not made again either.
    again = Recorded(path, OF, unused)
    assert again(FIRST, START) == model()(FIRST, START) and again(SECOND, START) == model()(SECOND, START)


def test_what_a_file_has_is_given_to_no_worker(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    straight = search(START, LADDERS, Recorded(path, OF, model()), never)
    cluster = Cluster(model(), 2)
    with cluster.spread(Recorded(path, OF, unused), []) as spread:
        assert search(START, LADDERS, spread, never, ahead=spread.ahead) == straight
    assert not cluster.begun


def test_the_best_stays_where_it_was_compiled() -> None:
    cluster = Cluster(model(), 2)
    with cluster.spread(alone(unused), []) as spread:
        spread.ahead([FIRST, SECOND], START)
        spread(FIRST, START)
        spread(SECOND, START)
        spread(THIRD, SECOND)
        spread.ahead([THIRD], FIRST)
    workers = {asked: number for number, asked in cluster.begun}
    assert workers[FIRST, START] != workers[SECOND, START]
    assert workers[THIRD, SECOND] == workers[SECOND, START]
    assert workers[THIRD, FIRST] == workers[FIRST, START]


def test_before_this_process_computes_all_are_idle_and_nothing_else_is_begun() -> None:
    cluster = Cluster(model(), 2)
    with cluster.spread(alone(unused), []) as spread:
        spread.ahead([FIRST, SECOND, THIRD], START)
        assert len(cluster.busy) == 2
        spread.rest()
        assert not cluster.busy and len(cluster.begun) == 2
        # Both are known by now.
        spread(SECOND, START)
        assert len(cluster.begun) == 2
