"""The search: which recipe is best within the budget, every technique alone first, then together from the best one on.

What is tried, and in which order, is decided here, from what trials said alone; how a trial is made is not known here. So the
same outcomes lead to the same recipe, and what was tried before a process ended need not be tried again.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace

from ..recipe import Recipe
from ..techniques import TECHNIQUES, Technique
from ..tried import Tried

__all__ = ["AS_GOOD", "Ahead", "Known", "Ladder", "Late", "Trial", "search"]

Trial = Callable[[Recipe, Recipe], Tried]
"""What became of a recipe beside the best so far."""
Ahead = Callable[[Sequence[Recipe], Recipe], None]
"""Is told which recipes are likely to be tried next beside a best, in this order; nothing is promised."""
Known = Callable[[Recipe, Recipe], bool]
"""Whether a trial was made already, and so takes no time."""
Ladder = Sequence[Technique]
"""Settings of one technique, from mild to strong."""
Late = Callable[[float], bool]
"""Whether this share of the time is over."""

AS_GOOD = 0.98
"""Of the best, what is given away for one technique fewer."""
_LOOKS = 3
"""How many recipes may be asked to be confirmed."""
_ALONE = 0.65
"""The share of the time for each technique alone."""


def search(
    start: Recipe,
    ladders: Sequence[Sequence[Ladder]],
    trial: Trial,
    late: Late,
    confirmed: Callable[[Recipe], bool] = lambda _: True,
    ahead: Ahead = lambda *_: None,
    known: Known = lambda *_: False,
) -> tuple[Recipe, tuple[Tried, ...]]:
    """The best recipe found from `start` on, and all that was tried, in order.

    Every technique is tried alone, from mild to strong until the budget refuses it, from there on with what brings answers back:
    first the mildest setting of each in the first group of `ladders`, then the next of each, and so on with the other groups. The best of these is the first of the recipe; the others join it in order of what they gained, in milder settings where
    their losses add up to too much. At last it is tried without each of its parts, and with neighbours the other way round.
    When it is `late`, the rest is noted as not tried, but for what is `known`. `ahead` is told what will be tried next whatever becomes of the trials before, or
    is likely to be, so that several may be made at once; what is decided is the same whether they are or not.

    A best that is not `confirmed` is built again without all of its parts together, three times at most, as with each look chance has
    another one; where none is, the first comes back.
    """
    found = _Search(start, ladders, trial, late, ahead, known)
    found.alone()
    first = None
    for _ in range(_LOOKS):
        found.together()
        found.without()
        found.swapped()
        if found.best == start or confirmed(found.best):
            break
        first = first or found.best
        found.bar()
    best = found.best if first is None or found.best != start else first
    return best, tuple(found.tried)


Option = tuple[float, tuple[Technique, ...]]
"""What techniques gained alone, and these techniques: one, and what brings its answers back, if need be."""


class _Climb:
    """A way up a ladder: `next` is what is to be tried on it, `options` what gained something."""

    def __init__(self, ladder: Ladder, menders: Sequence[Technique]) -> None:
        self.options: list[Option] = []
        self._ladder = ladder
        self._way = self._climbed(menders)
        self.next = next(self._way)

    @property
    def after(self) -> tuple[Technique, ...]:
        """What comes after the next, if that is not refused; nothing on the highest rung."""
        first, *menders = self.next
        higher = self._ladder[self._ladder.index(first) + 1 :]
        return (higher[0], *menders) if higher else ()

    def goes_on(self, seen: Tried) -> bool:
        """Whether there is anything more to try, told what became of the next."""
        with contextlib.suppress(StopIteration):
            self.next = self._way.send(seen)
            return True
        return False

    def _climbed(self, menders: Sequence[Technique]) -> Generator[tuple[Technique, ...], Tried, None]:
        """What is to be tried, told what became of it: upwards until it is refused, and from there on beside each of the menders."""
        refused = None
        for beside in [(), *((one,) for one in menders)]:
            if beside and refused is None:
                return
            for place in range(refused or 0, len(self._ladder)):
                techniques = (self._ladder[place], *beside)
                seen = yield techniques
                if seen.outcome == "kept" and seen.gain is not None:
                    self.options.append((seen.gain.value, techniques))
                if seen.outcome == "refused":
                    refused = place if refused is None else refused
                    break
                if seen.outcome == "nothing to do":
                    return


class _Search:
    """The best recipe so far, and what was tried for it."""

    def __init__(
        self,
        start: Recipe,
        ladders: Sequence[Sequence[Ladder]],
        trial: Trial,
        late: Late,
        ahead: Ahead,
        known: Known,
    ) -> None:
        self.best, self.tried = start, list[Tried]()
        self._start, self._trial, self._late, self._ahead, self._known = start, trial, late, ahead, known
        self._groups = [[one for one in group if one and not one[0].mends] for group in ladders]
        self._menders = [one[0] for group in ladders for one in group if one and one[0].mends]
        self._seen: dict[str, Tried] = {}
        self._options: list[list[Option]] = []
        self._barred: list[list[Technique]] = []
        self._single: set[str] = set()

    def alone(self) -> None:
        """Notes for each technique the settings that gained something alone, those that gained most first."""
        groups = [
            deque(_Climb(ladder, self._menders_of(ladder)) for ladder in group) for group in self._groups
        ]
        for place, waiting in enumerate(groups):
            found = [climb.options for climb in waiting]
            while waiting:
                # None of these depends on what becomes of another ladder, those of later groups as little.
                self._announce(self._coming(groups[place:]), _ALONE)
                climb = waiting.popleft()
                if climb.goes_on(self._try(_with(self._start, *climb.next), _ALONE)):
                    waiting.append(climb)
            self._options += [sorted(some, key=lambda one: -one[0]) for some in found if some]
        self._single = set(self._seen)

    def together(self) -> None:
        """The best alone, joined by the others."""
        groups = sorted(self._options, key=lambda options: -options[0][0])
        for place, options in enumerate(groups):
            for _, techniques in options:
                # As if this one did not join: where it does, the next ones are tried beside another best.
                coming = (techniques, *(later[0][1] for later in groups[place + 1 :]))
                joined = [_with(self.best, *one) for one in coming]
                self._announce(recipe for recipe in joined if not self._is_barred(recipe))
                outcome = self._join(techniques)
                if outcome == "refused" and not any(one.mends for one in techniques):
                    outcome = self._join((*techniques, *self._menders_of(techniques)))
                if outcome != "refused":
                    break

    def bar(self) -> None:
        """Begins again: what the best approximates may not be together."""
        self._barred.append([one for one in self.best if not one.exact])
        self.best = self._start
        # What was slower than that best may be faster than the next.
        self._seen = {
            key: seen for key, seen in self._seen.items() if seen.outcome != "slower" or key in self._single
        }

    def without(self) -> None:
        """The best without one of its parts: it loses less, and so is taken where it is about as good."""
        parts = [one for one in self.best if not one.exact and not one.mends]
        for place, technique in enumerate(parts):
            rest = self._less(technique)
            if rest == self._start:
                break  # which all were compared with
            self._announce(self._less(one) for one in parts[place:])
            seen = self._try(rest, 1.0)
            if seen.outcome == "slower" and seen.gain is not None and seen.gain.value >= AS_GOOD:
                reason = f"about as good without {type(technique).__name__}"
                self._keep(rest, replace(seen, outcome="kept", reason=reason))

    def swapped(self) -> None:
        """The best with two neighbours that approximate the other way round."""
        lossy = [one for one in self.best if not one.exact and not one.mends]
        pairs = list(itertools.pairwise(lossy))
        for place, pair in enumerate(pairs):
            self._announce(self._swap(*later) for later in pairs[place:])
            recipe = self._swap(*pair)
            self._keep(recipe, self._try(recipe, 1.0))

    def _coming(self, groups: Iterable[Iterable[_Climb]]) -> Iterator[Recipe]:
        """What is tried alone next, group by group, and what after that if it is not refused."""
        for group in groups:
            yield from (_with(self._start, *climb.next) for climb in group)
            yield from (_with(self._start, *climb.after) for climb in group if climb.after)

    def _join(self, techniques: Sequence[Technique]) -> str:
        recipe = _with(self.best, *techniques)
        if self._is_barred(recipe):
            return "refused"
        # What was tried alone already is the best where nothing is yet.
        seen = self._try(recipe, 1.0)
        self._keep(recipe, seen)
        return seen.outcome

    def _is_barred(self, recipe: Recipe) -> bool:
        return any(all(one in recipe.techniques for one in barred) for barred in self._barred)

    def _menders_of(self, techniques: Sequence[Technique]) -> list[Technique]:
        return [one for one in self._menders if _rank(techniques[0]) < _rank(one)]

    def _keep(self, recipe: Recipe, seen: Tried) -> None:
        """The recipe is the best from now on, if it was kept."""
        if seen.outcome == "kept":
            self.best = recipe
            self._seen[recipe.to_json()] = seen
            self.tried = [seen if one.recipe == recipe else one for one in self.tried]

    def _try(self, recipe: Recipe, share: float) -> Tried:
        """What becomes of a recipe beside the best, if there is time for it; what was tried beside another best is not tried again."""
        key = recipe.to_json()
        if key not in self._seen:
            if recipe == self.best:
                return Tried(recipe, "slower", "the best already")
            seen = (
                Tried(recipe, "not tried", "the time limit was near")
                if self._late(share) and not self._known(recipe, self.best)
                else self._trial(recipe, self.best)
            )
            self._seen[key] = seen
            self.tried = [one for one in self.tried if one.recipe != recipe] + [seen]
        return self._seen[key]

    def _announce(self, recipes: Iterable[Recipe], share: float = 1.0) -> None:
        """Says what is likely to be tried next beside the best, as long as there is time for it."""
        if not self._late(share):
            known = (self._start, self.best)
            self._ahead(
                [one for one in recipes if one not in known and one.to_json() not in self._seen], self.best
            )

    def _less(self, technique: Technique) -> Recipe:
        """The best without one, and without what brings answers back where nothing in front of that is left to mend."""
        rest = [one for one in self.best if one != technique]
        kept = [
            one for i, one in enumerate(rest) if not one.mends or any(not before.exact for before in rest[:i])
        ]
        return Recipe(tuple(kept))

    def _swap(self, first: Technique, second: Technique) -> Recipe:
        """The best with these two in each other's places."""
        places = list(self.best)
        at, to = places.index(first), places.index(second)
        places[at], places[to] = second, first
        return Recipe(tuple(places))


def _with(recipe: Recipe, *techniques: Technique) -> Recipe:
    """The recipe with these in their places, in place of other settings of the same ones."""
    made = [one for one in recipe if one.name not in {technique.name for technique in techniques}]
    for technique in techniques:
        rank = _rank(technique)
        place = next((i for i, one in enumerate(made) if _rank(one) > rank), len(made))
        made.insert(place, technique)
    return Recipe(tuple(made))


def _rank(technique: Technique) -> int:
    """The place of a technique in the order of application; behind all of ours for another's."""
    names = list(TECHNIQUES)
    return names.index(technique.name) if technique.name in names else len(names)
