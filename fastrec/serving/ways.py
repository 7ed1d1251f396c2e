"""The ways to answer several requests at once: each is checked against calls one by one, and the fastest chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, fx

from ..as_called import AsCalled
from ..backends import Backend, Eager, Session
from ..capture import capture
from ..errors import InputError
from ..fresh import Fresh
from ..graph import share_constants
from ..guards import Bounds
from ..plan import ORIGINAL, WORTH, choose
from ..program import Program
from ..quiet import reason_of
from ..report import Trial
from ..verify import once_each, verify
from .joined import Joined, Joiner
from .ragged import ask_several, inputs_of, pick_late

if TYPE_CHECKING:
    from ..compressed import CompressedModel

__all__ = ["ONE_BY_ONE", "Chosen", "Way", "choose_way"]

Way: TypeAlias = Callable[[Joined], Sequence[Tensor]]
"""The flat answers for the candidates of several requests."""

ONE_BY_ONE = "one by one"
"""What the way that merges nothing is called."""

_CHECKED = (2, 3, 7)
"""Numbers of requests at which a way is compared with calls one by one."""


@dataclass(frozen=True)
class Chosen:
    """The way that serves, by name, why no other one does, where it is one by one, and how fast each was."""

    name: str
    call: Way
    reason: str = ""
    trials: tuple[Trial, ...] = ()


def choose_way(
    fast: CompressedModel,
    joiner: Joiner,
    one_by_one: Way,
    *,
    at: tuple[int, int],
    backends: Sequence[Backend] | None,
    seconds: float,
    wanted: str | None,
) -> Chosen:
    """The fastest way `at` a number of requests and how many candidates each has, or the one that is `wanted`."""
    if joiner.unable:
        return Chosen(ONE_BY_ONE, one_by_one, joiner.unable)
    if wanted == ONE_BY_ONE:
        return Chosen(ONE_BY_ONE, one_by_one, "it was asked for")
    example = _example(fast)
    if example is None:
        return Chosen(ONE_BY_ONE, one_by_one, "no example is kept to check merged answers with")
    fresh = _Requests(joiner, fast, example)
    expected = once_each(fresh.call(one_by_one), fresh)
    ways, failed = _found(fast, joiner, example, backends)
    for name in list(ways):
        try:
            off = verify(expected, fresh.call(ways[name]), fresh, _CHECKED, joiner.axes)
        except Exception as error:  # noqa: BLE001 - whatever a foreign library raises, one by one still serves
            off = reason_of(error)
        if isinstance(off, str):
            failed.append(f"{name}: {off}")
            del ways[name]
    if wanted in ways:
        return Chosen(wanted, ways[wanted])
    if wanted is not None or not ways:
        there = f"there is {', '.join([ONE_BY_ONE, *ways])}"
        return Chosen(ONE_BY_ONE, one_by_one, "; ".join([*failed, there]))
    return _fastest({ONE_BY_ONE: one_by_one, **ways}, fresh, at, seconds)


def _fastest(ways: Mapping[str, Way], fresh: _Requests, at: tuple[int, int], seconds: float) -> Chosen:
    requests, candidates = at
    calls = {name: fresh.call(way) for name, way in ways.items()}
    before = calls.pop(ONE_BY_ONE)

    def draw(rows: int, index: int) -> list[Tensor]:
        return fresh.of([rows // requests] * requests, index)

    best, trials = choose(requests * candidates, before, calls, draw, seconds)
    gained = {trial.session: trial.speedup or 0.0 for trial in trials}
    if best == ORIGINAL or gained[best] < WORTH:
        why = f"{requests} requests of {candidates} candidates were answered no faster together"
        return Chosen(ONE_BY_ONE, ways[ONE_BY_ONE], why, tuple(trials))
    return Chosen(best, ways[best], "", tuple(trials))


def _found(
    fast: CompressedModel, joiner: Joiner, example: list[Tensor], backends: Sequence[Backend] | None
) -> tuple[dict[str, Way], list[str]]:
    """Every way that can be had, and why others cannot."""
    if not joiner.whole and not joiner.mixed:
        return {"rows": partial(_rows, fast)}, []
    ways: dict[str, Way] = {}
    failed: list[str] = []
    try:
        several = _several(fast, joiner, example)
    except Exception as error:  # noqa: BLE001 - whatever a stranger's graph makes a rule raise
        failed.append(f"ragged: {reason_of(error)}")
    else:
        for backend in _backends(fast) if backends is None else backends:
            name = f"ragged, {backend.label}"
            try:
                ways[name] = partial(_ragged, backend.compile(several), joiner)
            except Exception as error:  # noqa: BLE001 - whatever a foreign library raises
                failed.append(f"{name}: {reason_of(error)}")
    if fast.exact or all(source.whole for source in fast.sources.values()):
        ways["whole batch"] = partial(_repeated, fast, joiner)
    return ways, failed


def _rows(fast: CompressedModel, joined: Joined) -> Sequence[Tensor]:
    return fast.session(joined.rows)(*joined.flat)


def _ragged(session: Session, joiner: Joiner, joined: Joined) -> Sequence[Tensor]:
    return session(*inputs_of(joined, joiner))


def _repeated(fast: CompressedModel, joiner: Joiner, joined: Joined) -> Sequence[Tensor]:
    """By a session that takes the request's features in every row, or the original."""
    flat, plan = joiner.repeated(joined), fast.plan
    name = ORIGINAL if plan is None else plan.name_for(joined.rows)
    if name == ORIGINAL or fast.sources[name].whole:
        return fast.session(joined.rows)(*flat)  # which repeats what has one row alone
    return fast.original.answers(flat)


def _backends(fast: CompressedModel) -> list[Backend]:
    names = () if fast.plan is None else fast.plan.names
    return list(dict.fromkeys(fast.sources[name].backend for name in names if name in fast.sources)) or [
        Eager()
    ]


def _several(fast: CompressedModel, joiner: Joiner, example: list[Tensor]) -> Program:
    """The graph of several requests, rewritten as that of one was."""
    program = _whole(fast, example)
    for technique in fast.recipe:
        if technique.level == "module":
            if isinstance(program.model, fx.GraphModule):
                raise InputError(f"{technique.name} edits modules, and the original's are not here")
            program = program.with_model(technique.apply(program).model)
    if not isinstance(program.model, fx.GraphModule):
        program = capture(program)
    program = pick_late(ask_several(program, joiner))
    for technique in fast.recipe:
        if technique.level == "graph":
            program = program.with_model(technique.apply(program).model)
    program = pick_late(program)
    plain = fast.program
    if plain is not None and isinstance(plain.model, fx.GraphModule):
        share_constants(program.model, plain.model)  # type: ignore[arg-type]  # what was captured is a graph
    return program


def _whole(fast: CompressedModel, example: list[Tensor]) -> Program:
    """The program of whole batches: the original, or its graph where that is what is kept of it."""
    original = fast.original
    flat = fast.once.all(example)
    if isinstance(original.model, AsCalled):
        source = original.model.source
        if source is None or original.model.once:
            raise InputError("what is kept of the original is a graph of one request")
        return Program(source.model, tuple(flat), source.layout)
    if original.batch is not None:
        return original
    args, kwargs = original.layout.arguments(flat)
    if args and kwargs:
        raise InputError("the original is called by position and by name, and no batch is kept")
    return Program(original.model, kwargs or args, original.layout, original.entry)


def _example(fast: CompressedModel) -> list[Tensor] | None:
    """One request that is known, flat."""
    original, program = fast.original, fast.program
    if original.batch is not None:
        return fast.once.first(original.flat(original.batch))
    return list(program.batch) if program is not None and program.batch else None


class _Requests:
    """Draws several requests, as one list of flat tensors with their sizes behind."""

    def __init__(self, joiner: Joiner, fast: CompressedModel, example: list[Tensor]) -> None:
        guard = fast.guard
        bounds: Sequence[Bounds | None] = guard.bounds if guard is not None else [None] * len(example)
        self._joiner, self._once = joiner, fast.once
        self._fresh = Fresh(joiner.features, [example], bounds, redraw=True)
        # Numbers are not drawn anew, and equal requests would prove nothing.
        self._varied = [i for i in joiner.whole if example[i].is_floating_point() and bounds[i] is None]

    def __call__(self, requests: int, index: int) -> list[Tensor]:
        """Requests of one to nine candidates."""
        rng = torch.Generator().manual_seed(1000 * requests + index)
        return self.of(torch.randint(1, 10, (requests,), generator=rng).tolist(), index)

    def of(self, sizes: Sequence[int], index: int) -> list[Tensor]:
        """Requests of so many candidates."""
        rng = torch.Generator().manual_seed(index)
        flats = []
        for place, size in enumerate(sizes):
            flat = self._once.first(self._once.same(self._fresh(size, 64 * index + place)))
            for feature in self._varied:
                flat[feature] = flat[feature] * (0.5 + torch.rand(flat[feature].shape, generator=rng))
            flats.append(flat)
        joined = self._joiner.join(flats)
        return [*joined.flat, torch.tensor(joined.sizes)]

    def call(self, way: Way) -> Callable[[list[Tensor]], Sequence[Tensor]]:
        """A way, for such lists."""
        return lambda given: way(Joined(tuple(given[:-1]), tuple(given[-1].tolist())))
