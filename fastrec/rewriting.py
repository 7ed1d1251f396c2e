"""From the caller's model to every form of it worth compiling: read, captured, asked for one request, rewritten."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import fx

from .calibration import apart, as_example, check_calibration
from .calls import as_before
from .capture import capture
from .certify import Certifier
from .declared import Declared, read_program, request_notes, unread_notes
from .errors import CaptureError, FastrecError, InputError, TechniqueError
from .fresh import Fresh
from .guards import Guard, read_guard
from .inputs import Layout
from .journal import Journal
from .measure import fidelity
from .memo import Memo
from .nonfinite import spoilt_notes
from .places import places
from .plan import Batches
from .program import Program, target_of
from .progress import Stages
from .recipe import Recipe
from .report import BUDGET, Step
from .request import Once, ask
from .rows import take_rows
from .sessions import Form
from .techniques import Skip, Technique

__all__ = [
    "Rewritten",
    "apply_recipe",
    "batches_of",
    "captured",
    "fresh_batches",
    "read",
    "rewritten",
    "with_calibration",
]

_BATCHES = 64


@dataclass(frozen=True)
class Rewritten:
    """The program as it is, as one request asks for it, after the recipe, and all forms worth measuring.

    One that could not be captured is asked as it is: its features of the request are repeated.
    """

    plain: Program
    asked: Program
    fast: Program
    forms: tuple[Form, ...]
    recipe: Recipe

    @property
    def captured(self) -> bool:
        """Whether these programs are graphs."""
        return isinstance(self.fast.model, fx.GraphModule)

    def form(self, *, lossy: bool) -> Form:
        """The form of one request that serves: that of the whole recipe, or the exact one, where nothing lossy does."""
        mains = [form for form in self.forms if form.main]
        return next((form for form in mains if lossy or form.exact), mains[0])


def read(
    work: Journal,
    target: Any,
    batch: Any,
    request: Declared | None,
    calibration: Iterable[Any] | None,
    before: Layout | None = None,
) -> Program | None:
    """The program, or None for a model that cannot be copied to be looked at.

    With `before` it is called as another model was, and what is known of rows is what was known of that one's: `InputError` where
    it is not.
    """
    model, _ = target_of(target)
    if any(module.training for module in model.modules()):
        work.notes.append(
            "the model was in training mode: it was measured, and is served, in evaluation mode"
        )
    batches = batches_of(calibration)
    try:
        if before is None:
            program = read_program(target, batch, (), request or ())
        else:
            program = Program.read(target, batch, (), partial(as_before, before))
    except FastrecError:
        raise
    except Exception as error:  # noqa: BLE001 - a stranger's module may refuse to be copied in any way
        work.skipped.append(Skip("copy", type(model).__name__, f"{type(error).__name__}: {error}"[:300]))
        return None
    program = with_calibration(work, program, batches)
    if before is None:
        work.notes += spoilt_notes(program)
    work.notes += unread_notes(program)
    if program.layout.rows is None:
        work.notes.append(
            "no dimension of the batch was found to count rows: only the example's own shapes are served fast"
        )
    elif not program.layout.independent:
        work.notes.append("the answer for a row was seen to depend on the other rows of its batch")
    if request or (before is not None and Once(before.features)):
        work.notes += request_notes(program)
    return program


def batches_of(calibration: Iterable[Any] | None) -> list[Any]:
    """The first batches of what is given as calibration. Raises `InputError` for what holds none."""
    if calibration is None:
        return []
    if isinstance(calibration, (str, Mapping)) or not isinstance(calibration, Iterable):
        raise InputError(
            f"calibration takes batches, each as the model takes it, in a list or loader: got a {type(calibration).__name__}"
        )
    batches = list(itertools.islice(calibration, _BATCHES))
    if not batches:
        raise InputError(
            "calibration has no batches: leave it out, or give some (a generator is empty once it was read)"
        )
    return batches


def with_calibration(work: Journal, program: Program, batches: Sequence[Any]) -> Program:
    """The program with these batches beside its example. Raises `InputError` for one that is not called as that."""
    for index, other in enumerate(batches):
        try:
            flat = Once(program.layout.features).all(program.flat(other))
            work.calibration.append(as_example(program.layout.features, flat))
        except InputError as error:
            raise InputError(f"calibration batch {index}: {error}", feature=error.feature) from error
    return replace(program, calibration=tuple(batches))


def apply_recipe(
    work: Journal,
    program: Program,
    recipe: Recipe,
    strict: bool,
    certifier: Certifier | None,
    show: Stages,
    memo: Memo | None = None,
) -> Rewritten | None:
    """The captured program before and after the recipe's graph techniques.

    One that cannot be captured has its modules edited, by techniques that do so; None where there is nothing to edit.
    What `memo` has seen done is not done again.
    """
    memo = memo or Memo()
    modules = tuple(technique for technique in recipe if technique.level == "module")
    for technique in modules:
        show(technique.name)
        program, _ = _applied(work, program, technique, None, memo)
    show("capturing")
    try:
        plain, asked = memo.captured(program, partial(_captured, work))
    except CaptureError as error:
        return _uncaptured(work, program, recipe, strict, certifier, show, memo, error)
    if plain.unchecked:
        work.notes.append(
            f"the model's own checks of values are not made: {', '.join(plain.unchecked)}. Ids and numbers that are not finite are checked, "
            "other values are the caller's to check"
        )
    fast = asked
    if not recipe.exact:
        check_calibration(work, asked, asked.calibration, recipe)
    wanted = [technique for technique in recipe if technique.level == "graph"]
    fast, graphs, alternatives = _in_turn(work, fast, wanted, certifier, show, memo)
    exact = not any(step.changes and not step.exact for step in work.steps)
    cut = [technique for technique in graphs if technique.cuts]
    others = [Form(name, make, exact=exact, cut=bool(cut)) for name, make in alternatives]
    forms = [Form("", lambda: fast, exact=exact, cut=bool(cut), main=True)]
    if not exact and all(technique.exact for technique in modules):
        # What approximates has to be faster than what does not, or it is dropped.
        kept = tuple(technique for technique in graphs if technique.exact)
        # Made once: sessions and what is left of it share its tables.
        forms.append(Form("exact", cache(partial(rewritten, asked, kept, memo)), main=True))
        others += _parts(asked, graphs, memo)
    # What is learned would be learned again.
    if asked is not plain and not any(technique.mends for technique in graphs):
        # Where rows are few, one lookup and one product for all of them may beat one for the request and one more.
        repeated = partial(rewritten, plain, tuple(graphs))
        others.append(Form("whole batch", repeated, whole=True, exact=exact, cut=bool(cut)))
    return Rewritten(plain, asked, fast, (*forms, *others), Recipe((*modules, *graphs)))


def captured(work: Journal, program: Program, recipe: Recipe, memo: Memo) -> tuple[Program, Program]:
    """The graphs that `apply_recipe` begins with, given the same memo: as the program is, and as one request asks for it.

    Raises `CaptureError`.
    """
    modules = tuple(technique for technique in recipe if technique.level == "module")
    return memo.captured(rewritten(program, modules, memo), partial(_captured, work))


def _captured(work: Journal, program: Program) -> tuple[Program, Program]:
    """The program as a graph, and as one request asks for it, with what techniques may be fitted to."""
    plain = capture(program)
    known = tuple(tuple(flat) for flat in apart(work.calibration)[0])
    plain = replace(plain, calibration=known, origin=plain.model)
    return plain, ask(plain)


def _parts(program: Program, techniques: Sequence[Technique], memo: Memo) -> list[Form]:
    """The recipe without one thing that it approximates, and without all that cuts, where something that approximates is left.

    What helps many rows may hold up one: each has to gain something at every number of rows that it serves. Nothing is left out in
    front of what mends, which would have to learn again; what cuts goes together with that.
    """
    cut = tuple(technique for technique in techniques if technique.cuts)
    learned = max((place for place, technique in enumerate(techniques) if technique.mends), default=-1)
    left_out = [
        (technique,) for technique in techniques[learned + 1 :] if not (technique.exact or technique.cuts)
    ]
    forms = []
    for names in filter(None, [cut, *left_out]):
        gone = [*names, *(technique for technique in techniques if names is cut and technique.mends)]
        rest = tuple(technique for technique in techniques if technique not in gone)
        if not all(technique.exact for technique in rest):
            name = f"without {', '.join(technique.name for technique in names)}"
            make = cache(partial(rewritten, program, rest, memo))
            forms.append(
                Form(name, make, exact=False, cut=any(technique.cuts for technique in rest), part=True)
            )
    return forms


def _uncaptured(
    work: Journal,
    program: Program,
    recipe: Recipe,
    strict: bool,
    certifier: Certifier | None,
    show: Stages,
    memo: Memo,
    error: CaptureError,
) -> Rewritten | None:
    """A program that cannot be captured, after those techniques of the recipe that edit modules as well."""
    name = type(program.model).__name__
    graphs = [technique for technique in recipe if technique.level == "graph"]
    unfit = "" if not any(technique.modules for technique in graphs) else _unfit(program)
    able = [technique for technique in graphs if technique.modules and not unfit]
    blocked = [technique for technique in graphs if technique not in able]
    why = f"{error}; {unfit}" if unfit else str(error)
    if blocked and not able and strict:
        raise TechniqueError(
            f"{blocked[0].name} works on a captured graph, and the model cannot be captured: {why}",
            technique=blocked[0].name,
        ) from error
    work.skipped += [Skip(technique.name, name, f"not captured: {why}") for technique in blocked]
    if not blocked:
        work.skipped.append(Skip("capture", name, why))
    if not able:
        return None
    check_calibration(work, program, work.calibration, able)
    known = tuple(apart(program.calibration)[0])
    plain = replace(program, layout=replace(program.layout, exempt=_exempt(program)), calibration=known)
    fast, done, alternatives = _in_turn(work, plain, able, certifier, show, memo)
    if not done:
        return None
    work.notes.append(
        f"the model could not be captured: {', '.join(t.name for t in done)} edited its modules"
    )
    # Batches of one request hold its features once; the model's own code takes them repeated.
    once = Once(plain.layout.features)
    asked = replace(plain, layout=replace(plain.layout, features=once.candidates))
    whole = bool(once)
    exact = not any(step.changes and not step.exact for step in work.steps)
    cut = [technique for technique in done if technique.cuts]
    forms = [Form("modules", lambda: fast, whole=whole, exact=exact, cut=bool(cut), main=True)]
    forms += [replace(form, name=f"modules, {form.name}", whole=whole) for form in _parts(plain, done, memo)]
    forms += [
        Form(f"modules, {name}", make, whole=whole, exact=exact, cut=bool(cut)) for name, make in alternatives
    ]
    kept = tuple(technique for technique in recipe if technique.level == "module")
    return Rewritten(plain, asked, fast, tuple(forms), Recipe((*kept, *done)))


def _in_turn(
    work: Journal,
    program: Program,
    techniques: Sequence[Technique],
    certifier: Certifier | None,
    show: Stages,
    memo: Memo,
) -> tuple[Program, list[Technique], list[tuple[str, partial[Program]]]]:
    """The program after these techniques, in the settings that were kept, and other forms of it by their names."""
    done: list[Technique] = []
    others: list[tuple[str, Program, Technique, int]] = []
    for place, technique in enumerate(techniques):
        show(technique.name)
        before = program
        mend = next((later for later in techniques[place + 1 :] if later.mends), None)
        program, settled = _applied(work, program, technique, certifier, memo, mend)
        changes = work.steps[-1].changes
        if not changes and not settled.exact:
            continue  # refused, or nothing to do: other forms are to do without it too
        done.append(settled)
        others += [(name, before, other, len(done)) for name, other in settled.alternatives(changes).items()]
    forms = [
        (name, partial(rewritten, before, (other, *done[place:]))) for name, before, other, place in others
    ]
    return program, done, forms


def _unfit(program: Program) -> str:
    """Why a copy of a model that is called flat would not stand for it, or nothing."""
    if opaque := program.layout.opaque():
        return f"holds objects that are neither tensors nor plain values: {'; '.join(opaque)}"
    if isinstance(program.model, fx.GraphModule):
        return "it is a graph of torch.fx, whose modules are calls of it"
    private = program.private()
    flat = Once(program.layout.features).all(program.flat(program.batch))
    first, *_, last = (private.answers(flat) for _ in range(3))
    alike = [answer.shape for answer in first] == [answer.shape for answer in last]
    again = alike and fidelity(first, last).exact
    return "" if again else "it answers the same batch otherwise when asked again"


def _exempt(program: Program) -> tuple[int, ...]:
    """The numbers of rows that are the original's alone: one, where it does not take that."""
    layout = program.layout
    if layout.rows is None:
        return ()
    private = program.private()
    flat = Once(layout.features).all(program.flat(program.batch))
    try:
        private.answers(take_rows(layout.features, flat, torch.arange(1)))
    except Exception:  # noqa: BLE001 - whatever it is, the original raises it as it did
        return (1,)
    return ()


def rewritten(program: Program, techniques: Sequence[Technique], memo: Memo | None = None) -> Program:
    """The program after these techniques, one after the other."""
    memo = memo or Memo()
    for technique in techniques:
        program = program.with_model(memo.apply(technique, program).model)
    return program


def _applied(
    work: Journal,
    program: Program,
    technique: Technique,
    certifier: Certifier | None,
    memo: Memo,
    mend: Technique | None = None,
) -> tuple[Program, Technique]:
    """The program after a technique, in a milder setting where the budget asks for it."""
    began = time.perf_counter()
    if certifier is None or technique.exact:
        applied = memo.apply(technique, program)
    else:
        technique, applied, refused = certifier.settle(technique, program, memo, mend)
        work.skipped += [Skip(technique.name, BUDGET, reason) for reason in refused]
    took = time.perf_counter() - began
    if not technique.exact:
        # What is fitted is asked for: the time that is left is for compiling and measuring.
        work.deadline += took
    if applied.changes:
        took = max(took, memo.took(technique, program))
    at = places(program.model, applied.model)
    changes = tuple(replace(one, place=at(one.site)) for one in applied.changes)
    work.steps.append(Step(technique.name, technique.exact, changes, took))
    work.skipped += [replace(one, place=at(one.site)) for one in applied.skipped]
    return program.with_model(applied.model), technique


def fresh_batches(work: Journal, once: Once, found: Rewritten, guard: Guard) -> Batches:
    """Fresh batches of one request each, its features repeated, as the original takes them."""
    # What was fitted to some of the traffic is judged by other traffic.
    known = work.calibration if found.recipe.exact else apart(work.calibration)[1]
    flats = known or [found.plain.flat(found.plain.batch)]
    given = [once.one(once.same(flat)) for several in flats for flat in once.requests(several)]
    # Whatever is done about numbers that are not finite, ids that no table has answer nothing.
    check = guard if found.recipe.promised else read_guard(found.asked, "propagate")
    for flat in given:
        try:
            check(flat)
        except InputError as error:
            where = "calibration" if work.calibration else "the example batch"
            raise type(error)(f"{where}: {error}", feature=error.feature, row=error.row) from error
    draw = Fresh(found.asked.layout.features, given, guard.bounds, redraw=not work.calibration)
    if not once:
        return draw
    return lambda rows, index: [tensor.contiguous() for tensor in once.all(once.same(draw(rows, index)))]
