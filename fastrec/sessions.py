"""Every session that may serve: the forms of a program, compiled by every backend, each checked against the original."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from .backends import Backend, Repeated, Session, Source
from .compressed import CompressedModel
from .errors import BackendError
from .graph import share_constants
from .guards import Bounds
from .journal import Journal
from .measure import Fidelity
from .memo import Memo
from .plan import Batches, Call, leaders, remaining
from .program import Answers, Program
from .progress import Stages
from .request import Once
from .verify import Expected, checked_rows, neighbours, once_each, verify

__all__ = [
    "Form",
    "Made",
    "compile_forms",
    "compile_pairs",
    "label_of",
    "original_call",
    "served_call",
    "session_call",
]

_FIRST = 0.6  # share of the time that must be left for one more backend
_LAST = 0.33  # share of the time that is kept for measuring
_LOOK = 0.3  # seconds to see which backends lead, at each size


@dataclass(frozen=True)
class Form:
    """One way to write the captured program: its name beside a backend's and how it is made.

    `whole` says that it takes the request's features repeated for every row, `exact` that it keeps the answer, `cut` that parts
    of the model were taken out, `main` that every backend is to try it, not those alone that lead, `part` that it is without some of
    what the recipe approximates.
    """

    name: str
    make: Callable[[], Program]
    whole: bool = False
    exact: bool = True
    cut: bool = False
    main: bool = False
    part: bool = False


@dataclass(frozen=True)
class Made:
    """A session, the program it was compiled from, how far its answers are off, and whether that is rounding alone.

    `cut` says that parts of the model were taken out, `moved` how far the answer of a session that approximates was seen to move
    with the rows beside it; `source` is what it can be made from again.
    """

    session: Session
    program: Program
    fidelity: Fidelity
    exact: bool = True
    cut: bool = False
    moved: float = 0.0
    source: Source | None = None


def compile_forms(
    journal: Journal,
    original: Program,
    once: Once,
    forms: Sequence[Form],
    backends: Sequence[Backend],
    fresh: Batches,
    sizes: Sequence[int],
    show: Stages,
    bounds: Sequence[Bounds | None] = (),
    memo: Memo | None = None,
) -> dict[str, Made]:
    """Sessions by their label: the main forms by every backend, the others by those that lead with one; `bounds` are those of ids,
    and what `memo` has seen compiled is not compiled again.

    Whatever cannot be compiled, answers differently or would take too long is left out, with its reason.
    """
    work = _Compiling(journal, original, once, fresh, sizes, bounds, memo or Memo())
    mains = [(form, backend) for backend in backends for form in forms if form.main]
    # What is slow comes last: it may take the time of the others.
    mains.sort(key=lambda pair: not pair[0].exact and pair[1].plain(work.program(pair[0])))
    work.compile_all(mains, show)
    others = [form for form in forms if not form.main]
    if others:
        leading = work.leading(backends, [form for form in forms if form.main])
        work.compile_all([(form, backend) for form in others for backend in leading], show)
    return work.made


def compile_pairs(
    journal: Journal,
    original: Program,
    once: Once,
    pairs: Sequence[tuple[Form, Backend]],
    fresh: Batches,
    sizes: Sequence[int],
    show: Stages,
    bounds: Sequence[Bounds | None] = (),
    memo: Memo | None = None,
) -> dict[str, Made]:
    """Sessions of these forms by these backends alone, checked as those of `compile_forms`; what fails is left out, with its reason."""
    work = _Compiling(journal, original, once, fresh, sizes, bounds, memo or Memo())
    for form, backend in pairs:
        show(f"compiling for {label_of(backend, form)}")
        work.compile(form, work.program(form), backend)
    return work.made


def original_call(program: Program) -> Call:
    """The original, in its own form, for flat batches."""
    function, layout = program.function, program.layout

    def call(flat: list[Tensor]) -> object:
        args, kwargs = layout.arguments(flat)
        with torch.no_grad():
            return function(*args, **kwargs)

    return call


def served_call(served: CompressedModel) -> Call:
    """A compressed model, as its callers call it, for flat batches."""
    layout = served.original.layout

    def call(flat: list[Tensor]) -> object:
        args, kwargs = layout.arguments(flat)
        return served(*args, **kwargs)

    return call


def session_call(session: Session, once: Once) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
    """A session, which takes one row of the request's features, for batches that repeat them."""
    if not once:
        return lambda flat: session(*flat)
    return lambda flat: session(*once.first(flat))


def label_of(backend: Backend, form: Form) -> str:
    """What the session of a form by a backend is called."""
    return f"{backend.label}, {form.name}" if form.name else backend.label


class _Compiling:
    """The sessions so far, and how long each backend took."""

    def __init__(
        self,
        journal: Journal,
        original: Program,
        once: Once,
        fresh: Batches,
        sizes: Sequence[int],
        bounds: Sequence[Bounds | None],
        memo: Memo,
    ) -> None:
        self.made: dict[str, Made] = {}
        self.took: dict[Backend, float] = {}
        self._programs: dict[str, Program] = {}
        self._journal, self._once, self._fresh, self._sizes = journal, once, fresh, sizes
        draft = original.private()
        self._original = once_each(draft.answers, fresh)
        self._meant: dict[str, Expected] = {}
        self._axes = original.layout.output_axes
        self._bounds, self._memo = bounds, memo

    def compile_all(self, pairs: Sequence[tuple[Form, Backend]], show: Stages) -> None:
        """A session of each, as far as the time goes."""
        for form, backend in pairs:
            show(f"compiling for {label_of(backend, form)}")
            # What is there already takes no time but that of looking at it.
            known = form.main and self._memo.compiled(backend, self.program(form))
            if known or not self.late(form, backend):
                self.compile(form, self.program(form), backend)

    def late(self, form: Form, backend: Backend) -> bool:
        """Whether there is such a session already, exact or not, and no time for another one; notes it."""
        share = _FIRST if form.main else _LAST
        long = not form.main and self.took[backend] > 0.4 * remaining(self._journal.deadline)
        left = remaining(self._journal.deadline) / self._journal.allowed
        late = any(made.exact is form.exact for made in self.made.values()) and (left < share or long)
        if late:
            self._journal.failed(label_of(backend, form), "not tried: the time limit was near")
        return late

    def compile(self, form: Form, program: Program, backend: Backend) -> None:
        """One more session, if it can be had."""
        label = label_of(backend, form)
        began = time.perf_counter()
        try:
            session = self._memo.compile(backend, program)
            if form.whole:
                session = Repeated(session, self._once)
            call = session_call(session, self._once)
            found = self._checked(form, program, call)
            moved = 0.0 if isinstance(found, str) else self._beside(form, program, call)
        except BackendError as error:
            self._journal.failed(label, str(error))
            return
        except Exception as error:  # noqa: BLE001 - whatever a foreign library raises, the original still serves
            self._journal.failed(label, f"{type(error).__name__}: {error}"[:300])
            return
        self.took[backend] = time.perf_counter() - began
        if isinstance(found, str) or isinstance(moved, str):
            self._journal.failed(label, str(found if isinstance(found, str) else moved))
            return
        bare = program.bare()
        source = Source(backend, bare, form.whole)
        self.made[label] = Made(session, bare, found, form.exact, form.cut, moved, source)

    def leading(self, backends: Sequence[Backend], forms: Sequence[Form]) -> list[Backend]:
        """The backends that were fastest with some form at some size, at a short look."""
        found = {label_of(backend, form): backend for backend in backends for form in forms}
        calls: Mapping[str, Callable[[list[Tensor]], object]] = {
            label: session_call(self.made[label].session, self._once) for label in found if label in self.made
        }
        if len({found[label] for label in calls}) < 2:
            return list(dict.fromkeys(found[label] for label in calls))
        sizes = {self._sizes[0], self._sizes[len(self._sizes) // 2]}
        first = {found[label] for rows in sizes for label in leaders(rows, calls, self._fresh, _LOOK)}
        return [backend for backend in backends if backend in first]

    def program(self, form: Form) -> Program:
        """The program of a form, made once, sharing constants with the first."""
        if form.name not in self._programs:
            program = form.make()
            first = next(iter(self._programs.values()), program)
            if isinstance(program.model, fx.GraphModule) and isinstance(first.model, fx.GraphModule):
                share_constants(program.model, first.model)
            self._programs[form.name] = program
        return self._programs[form.name]

    def _checked(self, form: Form, program: Program, call: Answers) -> Fidelity | str:
        """How far a session is off, or why it may not serve."""
        rows = checked_rows(program, self._sizes)
        reference = None if form.exact else self._plain(form, program)
        return verify(self._original, call, self._fresh, rows, self._axes, reference)

    def _beside(self, form: Form, program: Program, call: Answers) -> float | str:
        """How far the answers of a session that approximates move with the rows beside, or why it may not serve."""
        layout = program.layout
        if form.exact or layout.rows is None or not layout.independent:
            return 0.0
        crowd = self._fresh(max(checked_rows(program, self._sizes)), 5)
        return neighbours(call, self._once.candidates, crowd, self._axes, layout.exempt, self._bounds)

    def _plain(self, form: Form, program: Program) -> Expected:
        """What the program answers run as it is written."""
        if form.name not in self._meant:
            answers = program.answers if form.whole else lambda flat: program.answers(self._once.first(flat))
            self._meant[form.name] = once_each(answers, self._fresh)
        return self._meant[form.name]
