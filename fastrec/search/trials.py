"""Trials: a recipe applied, judged on labelled rows, compiled, and timed beside the best so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from ..backends import Backend, Session
from ..certify import Certifier, Judgement
from ..errors import FastrecError
from ..guards import Guard, read_guard
from ..journal import Journal
from ..measure import Ratio, Samples, tensor_bytes
from ..memo import Key, Memo
from ..plan import ORIGINAL, WORTH, Batches, Call, compared
from ..program import Program
from ..recipe import Recipe
from ..request import Once
from ..rewriting import Rewritten, apply_recipe, fresh_batches
from ..sessions import Form, Made, compile_forms, original_call, session_call
from ..techniques import Skip
from ..tried import Tried, said
from ..wording import times

__all__ = ["Trials"]

_NEAR = 1.1
"""Of the fastest session, what another one may take to stand for it."""
_TIMING = 3.0
"""Seconds that the timing of one trial takes, about."""
_LOOK = 0.2
"""The share of these for a short look at what is new."""
_FAR = 1.3
"""Of the fastest that is new, what another one takes that is not timed further."""


@dataclass(frozen=True)
class _Timed:
    """A session with the checks in front that it is served with."""

    session: Session
    call: Call


@dataclass
class _Ready:
    """A recipe that is compiled: its calls by label, the fastest at each number of rows, its bytes, and what it holds."""

    calls: dict[str, _Timed] = field(default_factory=dict)
    fastest: dict[int, str] = field(default_factory=dict)
    bytes: int = 0
    held: frozenset[Key] = frozenset()

    def leader(self, rows: int) -> dict[str, _Timed]:
        """The fastest call at a number of rows, by its label; none where nothing was compiled."""
        label = self.fastest.get(rows)
        return {} if label is None else {label: self.calls[label]}


class Trials:
    """Tries recipes on one program: `trial(recipe, best)` says what becomes of it.

    `start` is compiled by every backend. The others are by those that lead with it, one at least for each number of rows, or by the rest
    where none of these can. Numbers of rows that would take too long are left out.
    """

    def __init__(
        self,
        work: Journal,
        program: Program,
        once: Once,
        certifier: Certifier,
        backends: Sequence[Backend],
        sizes: Sequence[int],
        memo: Memo,
        minimize: Literal["latency", "bytes"] = "latency",
        guarded: bool = True,
    ) -> None:
        self._work, self._program, self._once, self._certifier = work, program, once, certifier
        self._backends, self._memo, self._minimize = tuple(backends), memo, minimize
        self._guarded = guarded
        self._sizes = tuple(sizes) if program.layout.rows is not None else (1,)
        self._original = original_call(program.private(buffers=False))
        self._fresh: Batches | None = None
        self._ready: dict[str, _Ready] = {}
        self._start, self._top, self._most = "", "", 0.0
        self._skipped: list[Skip] = []
        self._leading = self._backends
        self._by: dict[str, Backend] = {}
        self.asked: Program | None = None
        """The program that recipes are applied to, once `begin` was called; None where exact techniques have nothing to do."""

    def begin(self, start: Recipe) -> None:
        """Compiles what the others are compared with. Raises what applying it raises."""
        self._start = start.to_json()
        self._ready[self._start] = ready = _Ready(bytes=tensor_bytes(self._program.model))
        self._memo.touched.clear()
        journal = _unhurried()
        found = self._apply(start, journal)
        self._skipped = journal.skipped
        if found is None:
            return
        self.asked = found.asked
        ready.calls = self._compile(found, found.forms[0], self._backends, said(start), _unhurried())
        ready.bytes = tensor_bytes(found.fast.model)
        ready.held = frozenset(self._memo.touched)
        self._leading = self._lead(ready)

    def made(self, recipe: Recipe) -> Program | None:
        """The program after a recipe; None where that has nothing to do."""
        found = self._apply(recipe, _unhurried())
        return None if found is None else found.fast

    def __call__(self, recipe: Recipe, best: Recipe) -> Tried:
        """What becomes of a recipe beside the best so far."""
        began = time.perf_counter()
        try:
            seen = self._tried(recipe, best)
        except FastrecError as error:
            seen = Tried(recipe, "failed", str(error)[:300])
        except Exception as error:  # noqa: BLE001 - whatever a technique raises on a stranger's model: the others go on
            seen = Tried(recipe, "failed", f"{type(error).__name__}: {error}"[:300])
        return replace(seen, seconds=time.perf_counter() - began)

    def _tried(self, recipe: Recipe, best: Recipe) -> Tried:
        self._forget(best)
        self._memo.touched.clear()
        journal = _unhurried()
        found = self._apply(recipe, journal)
        new = [one for one in recipe if not one.exact and one not in best.techniques]
        if found is None or any(one not in found.recipe.techniques for one in new):
            reasons = [skip.reason for skip in journal.skipped if skip not in self._skipped]
            return Tried(recipe, "nothing to do", (reasons or ["no site"])[0])
        judged = self._certifier.of(found.fast)
        size = tensor_bytes(found.fast.model)
        if not judged.holds:
            return Tried(recipe, "refused", str(judged), accuracy=judged.accuracy, bytes=size)
        calls = self._by_leading(found, said(recipe), journal)
        if not calls:
            reason = journal.trials[-1].reason if journal.trials else "no backend runs it"
            return Tried(recipe, "failed", reason, accuracy=judged.accuracy, bytes=size)
        ready = self._ready[recipe.to_json()] = _Ready(calls, {}, size, frozenset(self._memo.touched))
        seen = self._compared(recipe, ready, self._ready[best.to_json()], judged)
        idle = [type(one).__name__ for one in recipe if not one.exact and one not in found.recipe.techniques]
        return replace(seen, reason=f"{', '.join(idle)}: nothing left to do") if idle else seen

    def _compared(self, recipe: Recipe, new: _Ready, best: _Ready, judged: Judgement) -> Tried:
        """How much better a recipe is than the best, and than the original."""
        start = self._ready[self._start]
        gains, speeds = [], []
        for rows in self._sizes:
            # What is exact, and the original, serve beside a recipe wherever they are faster.
            always, before = start.leader(rows), {**start.leader(rows), **best.leader(rows)}
            samples, as_timed = self._timed(rows, before, new.calls)
            candidates = [label for label in new.calls if label in as_timed]
            new.fastest[rows] = min(candidates, key=lambda label: _p50(samples, as_timed[label]))
            was = _fastest(samples, [ORIGINAL, *(as_timed[label] for label in before)])
            now = _fastest(samples, [ORIGINAL, *(as_timed[label] for label in (*always, *candidates))])
            gains.append(samples.ratio(was, now))
            speeds.append(samples.ratio(ORIGINAL, now))
        gain, speed = Ratio.mean(gains), Ratio.mean(speeds)
        if self._minimize == "bytes":
            smaller = best.bytes / max(new.bytes, 1)
            gain = Ratio(smaller, smaller, smaller, 1)
        if gain.value > self._most:
            self._most, self._top = gain.value, recipe.to_json()
        kept = gain.faster and gain.value >= WORTH
        what = "as small" if self._minimize == "bytes" else "as fast"
        reason = "" if kept else f"{times(gain.value)} {what} as the best so far"
        return Tried(recipe, "kept" if kept else "slower", reason, speed, gain, judged.accuracy, new.bytes)

    def _apply(self, recipe: Recipe, journal: Journal) -> Rewritten | None:
        journal.calibration = self._work.calibration
        return apply_recipe(journal, self._program, recipe, False, None, lambda _: None, self._memo)

    def _compile(
        self, found: Rewritten, form: Form, backends: Sequence[Backend], name: str, journal: Journal
    ) -> dict[str, _Timed]:
        """Calls of one form of the recipe, by backend and name, for batches that repeat the request's features."""
        guard = read_guard(found.asked)
        if self._fresh is None:
            self._fresh = fresh_batches(self._work, self._once, found, guard)
        able = backends if found.captured else [backend for backend in backends if backend.modules]
        made = compile_forms(
            journal, self._program, self._once, [replace(form, main=True)], able, self._fresh, self._sizes,
            lambda _: None, guard.bounds, self._memo,
        )  # fmt: skip
        calls = {}
        for label, one in made.items():
            call = _checked(one, self._once, guard if self._guarded else None)
            calls[f"{label}: {name}"] = _Timed(one.session, call)
            if one.source is not None:
                self._by[f"{label}: {name}"] = one.source.backend
        return calls

    def _by_leading(self, found: Rewritten, name: str, journal: Journal) -> dict[str, _Timed]:
        """Calls of the recipe and of its parts, each by the backends that lead, or by the others where none of these can."""
        rest = [backend for backend in self._backends if backend not in self._leading]
        calls: dict[str, _Timed] = {}
        # Where a part is faster, it serves, in the end as here.
        for form in (found.forms[0], *(form for form in found.forms if form.part)):
            calls |= self._compile(found, form, self._leading, name, journal) or self._compile(
                found, form, rest, name, journal
            )
        return calls

    def _lead(self, ready: _Ready) -> tuple[Backend, ...]:
        """The fewest backends of which one is near the fastest at each number of rows; notes the fastest, and leaves out what is too slow to time."""
        near: dict[int, set[str]] = {}
        for rows in self._sizes:
            began = time.perf_counter()
            samples = self._time(rows, ready.calls)
            medians = {label: samples.latency(label).p50 for label in ready.calls}
            if ready.calls:
                ready.fastest[rows] = min(medians, key=lambda label: medians[label])
                near[rows] = {label for label, p50 in medians.items() if p50 <= _NEAR * min(medians.values())}
            if time.perf_counter() - began > 2 * _TIMING:
                self._sizes = self._sizes[: self._sizes.index(rows) + 1]
                break
        leading: list[str] = []
        while near:
            label = max(ready.calls, key=lambda label: sum(label in labels for labels in near.values()))
            leading.append(label)
            near = {rows: labels for rows, labels in near.items() if label not in labels}
        chosen = [self._by[label] for label in leading]
        return tuple(backend for backend in self._backends if backend in chosen) or self._backends

    def _time(self, rows: int, calls: Mapping[str, _Timed], share: float = 1.0) -> Samples:
        assert self._fresh is not None
        seconds = share * _TIMING / len(self._sizes)
        timed = {label: one.call for label, one in calls.items()}
        return compared(rows, {ORIGINAL: self._original, **timed}, self._fresh, seconds)

    def _timed(
        self, rows: int, before: Mapping[str, _Timed], new: Mapping[str, _Timed]
    ) -> tuple[Samples, dict[str, str]]:
        """What calls take, and as which each was timed: one session once, whatever it is called. What is new and far behind at a short
        look is left out, which leaves the caches to those that may win.
        """
        first: dict[int, str] = {}
        for label, one in (*before.items(), *new.items()):
            first.setdefault(id(one.session), label)
        as_timed = {label: first[id(one.session)] for label, one in (*before.items(), *new.items())}
        fresh = {label: one for label, one in new.items() if as_timed[label] == label}
        if len(fresh) > 1:
            look = self._time(rows, fresh, _LOOK)
            best = _fastest(look, fresh)
            far = {label for label in fresh if _p50(look, label) > _FAR * _p50(look, best)}
            as_timed = {label: timed for label, timed in as_timed.items() if timed not in far}
        everything = {**new, **before}
        kept = {label: everything[label] for label in dict.fromkeys(as_timed.values())}
        return self._time(rows, kept, 1.0 - _LOOK), as_timed

    def _forget(self, best: Recipe) -> None:
        """Lets go of all but the start, the best so far, and what gained most, which may be the next; a best that is not there is compiled."""
        key = best.to_json()
        kept = {self._start, key, self._top}
        self._ready = {name: ready for name, ready in self._ready.items() if name in kept}
        self._memo.keep(frozenset().union(*(ready.held for ready in self._ready.values())))
        if key not in self._ready:
            self._memo.touched.clear()
            found = self._apply(best, _unhurried())
            assert found is not None, "a recipe that was the best has something to do"
            calls = self._by_leading(found, said(best), _unhurried())
            self._ready[key] = ready = _Ready(
                calls, {}, tensor_bytes(found.fast.model), frozenset(self._memo.touched)
            )
            for rows in self._sizes:
                samples, as_timed = self._timed(rows, {}, calls)
                ready.fastest[rows] = min(as_timed, key=lambda label: _p50(samples, as_timed[label]))


def _checked(made: Made, once: Once, guard: Guard | None) -> Call:
    """A session with the checks in front that it is served with."""
    call = session_call(made.session, once)
    if guard is None:
        return call

    def checked(flat: list[Tensor]) -> object:
        guard(once.first(flat) if once else flat)
        return call(flat)

    return checked


def _unhurried() -> Journal:
    """Notes of a trial, whose time is given before it begins."""
    now = time.perf_counter()
    return Journal(now, now + 1e9)


def _fastest(samples: Samples, labels: Iterable[str]) -> str:
    return min(labels, key=lambda label: _p50(samples, label))


def _p50(samples: Samples, label: str) -> float:
    return samples.latency(label).p50
