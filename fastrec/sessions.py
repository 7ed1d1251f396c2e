"""Every session that may serve: the forms of a program, compiled by every backend, each checked against the original."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from .backends import Backend, Session
from .compressed import Repeated
from .errors import BackendError
from .graph import share_constants
from .journal import Journal
from .plan import Batches, leaders, remaining
from .program import Program
from .progress import Stages
from .request import Once
from .verify import checked_rows, verify

__all__ = ["Form", "Made", "compile_forms", "session_call"]

_FIRST = 0.6  # share of the time that must be left for one more backend
_LAST = 0.33  # share of the time that is kept for measuring
_LOOK = 0.3  # seconds to see which backends lead, at each size


@dataclass(frozen=True)
class Form:
    """One way to write the captured program: its name beside a backend's, how it is made, and whether it takes the
    request's features repeated for every row."""

    name: str
    make: Callable[[], Program]
    whole: bool = False


@dataclass(frozen=True)
class Made:
    """A session and the program it was compiled from."""

    session: Session
    program: Program


def compile_forms(
    journal: Journal,
    original: Program,
    once: Once,
    forms: Sequence[Form],
    backends: Sequence[Backend],
    fresh: Batches,
    sizes: Sequence[int],
    show: Stages,
) -> dict[str, Made]:
    """Sessions by their label: the first form by every backend, the others by those that lead with it.

    Whatever cannot be compiled, answers differently or would take too long is left out, with its reason.
    """
    work = _Compiling(journal, original, once, fresh, sizes)
    main = forms[0].make()
    for backend in backends:
        show(f"compiling for {backend.label}")
        if not work.late(forms[0], backend):
            work.compile(forms[0], main, backend)
    leading = work.leading(backends)
    for form in forms[1:]:
        program: Program | None = None
        for backend in leading:
            label = _label(backend, form)
            show(f"compiling for {label}")
            if work.late(form, backend):
                continue
            if program is None:
                program = form.make()
                assert isinstance(program.model, fx.GraphModule) and isinstance(main.model, fx.GraphModule)
                share_constants(program.model, main.model)
            work.compile(form, program, backend)
    return work.made


def session_call(session: Session, once: Once) -> Callable[[list[Tensor]], tuple[Tensor, ...]]:
    """A session, which takes one row of the request's features, for batches that repeat them."""
    if not once:
        return lambda flat: session(*flat)
    return lambda flat: session(*once.first(flat))


def _label(backend: Backend, form: Form) -> str:
    return f"{backend.label}, {form.name}" if form.name else backend.label


class _Compiling:
    """The sessions so far, and how long each backend took."""

    def __init__(
        self, journal: Journal, original: Program, once: Once, fresh: Batches, sizes: Sequence[int]
    ) -> None:
        self.made: dict[str, Made] = {}
        self.took: dict[Backend, float] = {}
        self._journal, self._once, self._fresh, self._sizes = journal, once, fresh, sizes
        self._original = original.with_model(original.draft(private_buffers=True).eval())
        self._axes = original.layout.output_axes

    def late(self, form: Form, backend: Backend) -> bool:
        """Whether there is a session already and no time for another one; notes it."""
        share = _LAST if form.name else _FIRST
        long = bool(form.name) and self.took[backend] > 0.4 * remaining(self._journal.deadline)
        late = bool(self.made) and (self._journal.left < share or long)
        if late:
            self._journal.failed(_label(backend, form), "not tried: the time limit was near")
        return late

    def compile(self, form: Form, program: Program, backend: Backend) -> None:
        """One more session, if it can be had."""
        label = _label(backend, form)
        began = time.perf_counter()
        try:
            session = backend.compile(program)
            if form.whole:
                session = Repeated(session, self._once)
            worst = verify(
                lambda flat: self._original.run(flat)[0],
                session_call(session, self._once),
                self._fresh,
                checked_rows(program, self._sizes),
                self._axes,
            )
        except BackendError as error:
            self._journal.failed(label, str(error))
            return
        except Exception as error:  # noqa: BLE001 - whatever a foreign library raises, the original still serves
            self._journal.failed(label, f"{type(error).__name__}: {error}"[:300])
            return
        self.took[backend] = time.perf_counter() - began
        if isinstance(worst, str):
            self._journal.failed(label, worst)
            return
        self.made[label] = Made(session, program)
        self._journal.compared(worst)

    def leading(self, backends: Sequence[Backend]) -> list[Backend]:
        """The backends that were fastest at some size, at a short look."""
        calls: Mapping[str, Callable[[list[Tensor]], object]] = {
            backend.label: session_call(self.made[backend.label].session, self._once)
            for backend in backends
            if backend.label in self.made
        }
        if len(calls) < 2:
            return [backend for backend in backends if backend.label in calls]
        sizes = {self._sizes[0], self._sizes[len(self._sizes) // 2]}
        first = {name for rows in sizes for name in leaders(rows, calls, self._fresh, _LOOK)}
        return [backend for backend in backends if backend.label in first]
