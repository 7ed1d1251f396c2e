"""`update`: tomorrow's checkpoint in the place of today's, by the recipe and the plan that are there, through the same gates."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from .accounts import account, status_of, work_of
from .arguments import check_budget, own_random_state, read_seconds
from .artifact import Loaded, read
from .artifact.before import earlier_in, shorter_than
from .artifact.folder import folder_digest
from .as_called import AsCalled
from .assembly import Checks, assemble, judge_each, serving
from .budget import Budget
from .calls import answer_types, other_arguments
from .certify import Certifier, Evaluate, Judgement, most
from .compressed import CompressedModel
from .earlier import Earlier
from .errors import CaptureError, FastrecError, InputError, UpdateRefused
from .guards import read_guard
from .journal import Journal
from .limits import tables_of
from .memo import Memo
from .nonfinite import spoilt
from .plan import ORIGINAL, Batches, Plan, as_original, confirm
from .program import Program, read_batch, target_of
from .progress import Stages, stages
from .report import Report, SizeResult
from .request import Once
from .rewriting import Rewritten, apply_recipe, batches_of, captured, fresh_batches, with_calibration
from .rewriting import read as read_model
from .sessions import Form, Made, compile_pairs, label_of, original_call, served_call
from .techniques import TECHNIQUES, Technique
from .updated import Updated
from .wording import at

__all__ = ["update"]

_SECONDS, _ALL = 1.0, 3600.0


def update(
    folder: str | os.PathLike[str],
    model: nn.Module | Callable[..., Any],
    *,
    evaluate: Evaluate | None = None,
    budget: Budget | None = None,
    calibration: Iterable[Any] | None = None,
    batch: Any = None,
    types: Sequence[type] = (),
    techniques: Mapping[str, type[Technique]] = TECHNIQUES,
    seconds: float | None = None,
    progress: bool = True,
) -> CompressedModel:
    """The artifact in a folder brought up to a new checkpoint of its model, in one step; gives what now serves.

    `model` is the same architecture with other numbers, and maybe longer tables: ids that were appended are answered. The recipe of
    the artifact is applied to it as it is, the sessions of its plan are compiled again, by the backends they had, and nothing else is
    tried. Rows of coded tables and folded tables that come out as before are taken over, bit for bit what a fresh application gives.

    The gates are those of `compress`. Each session is checked against the new original. Where the loss was certified it has to be
    again, on the rows of `evaluate`, of every session that serves; `budget` is what was allowed then, unless given. At the numbers of
    rows of the plan where a session is measured slower than the new original (in `seconds` in all, 1 unless given) that serves.

    `calibration` gives batches of new traffic, which recipes ask for that are fitted to some; `batch` an example in the form of
    the first one, in place of the drawn one that the artifact holds. `types` and `techniques` are as in `load`.

    Raises `UpdateRefused`, with the reason, where a gate does not open or the recipe does not fit; `ArtifactError` for a folder that
    cannot be read or written; `InputError` for arguments that do not fit. In all of these the folder is as it was, bit for bit.
    Cost: a capture, the recipe, and a compilation for each session that serves.

    Example:
        >>> import tempfile, torch
        >>> from fastrec import compress, update
        >>> tower = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).eval()
        >>> fast = compress(tower, torch.randn(4, 8), batch_sizes=(1,), seconds=1, backends=[], progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fast.save(folder + "/ranker")
        ...     _ = torch.nn.init.ones_(tower[2].bias)
        ...     new = update(folder + "/ranker", tower, progress=False)
        >>> bool((new(torch.zeros(1, 8)) == tower(torch.zeros(1, 8))).all())
        True
    """
    began = time.perf_counter()
    limit = read_seconds(seconds, _SECONDS)
    path = os.path.abspath(os.fspath(folder))
    with own_random_state(), stages(progress) as show:
        show("reading the artifact")
        work = Journal(began, began + _ALL)
        found = _Update(work, path, types, techniques, show)
        try:
            made = found.made(model, evaluate, budget, calibration, batch, limit)
        finally:
            found.close()
        made.report = replace(made.report, seconds=time.perf_counter() - began)
        show("writing")
        found.refuse_newer()
        try:
            made.save(path)
        except InputError as error:
            raise found.refused(f"it cannot be saved: {error}", "compress the model anew") from error
    return made


class _Update:
    """One artifact, and the new checkpoint that is to take its place."""

    def __init__(
        self,
        work: Journal,
        path: str,
        types: Sequence[type],
        techniques: Mapping[str, type[Technique]],
        show: Stages,
    ) -> None:
        self._work, self._path, self._show = work, path, show
        if os.path.islink(path):
            raise self.refused(
                "it is a link, and what it leads to cannot be exchanged in one step",
                f"update {os.path.realpath(path)}",
            )
        try:
            self._old: Loaded = read(path, types=types, techniques=techniques, run=False)
        except InputError as error:
            cure = (
                "give types=[...] where a class is missing; a model that was not captured is compressed anew"
            )
            raise self.refused(f"it cannot be read without its model: {error}", cure) from error
        self._parts = self._old.contents
        self._earlier: Earlier | None = None

    def refused(self, reason: str, cure: str) -> UpdateRefused:
        """The error that says why the folder is as it was."""
        return UpdateRefused(f"{self._path} was not updated: {reason}. Cure: {cure}", path=self._path)

    def refuse_newer(self) -> None:
        """Raises `UpdateRefused` where another artifact has taken the place of the one that is brought up."""
        if folder_digest(self._path) != self._old.digest:
            raise self.refused("another artifact was saved there meanwhile", "update that one")

    def close(self) -> None:
        """Lets go of the tables of the artifact."""
        if self._earlier is not None:
            self._earlier.close()

    def made(
        self,
        model: Any,
        evaluate: Evaluate | None,
        budget: Budget | None,
        calibration: Iterable[Any] | None,
        batch: Any,
        seconds: float,
    ) -> CompressedModel:
        """The new compressed model, every gate passed."""
        work, parts, show = self._work, self._parts, self._show
        check_budget(budget, evaluate)
        budget = budget or _allowed(parts.report)
        self._check_given(evaluate, budget, calibration, batch)
        show("reading the model")
        program = self._program(model, calibration, batch)
        once = Once(program.layout.features, check=parts.once.check)
        certifier = None if evaluate is None else Certifier(program, once, evaluate, budget)
        memo = Memo()
        found = self._rewritten(program, memo)
        program = replace(program, layout=replace(program.layout, exempt=found.plain.layout.exempt))
        guard = read_guard(found.asked, self._on_nonfinite, found.recipe.promised)
        checks = Checks(guard if parts.guard is not None else None, self._on_nonfinite == "propagate")
        fresh = fresh_batches(work, once, found, guard)
        sizes = (1,) if parts.plan is None else parts.plan.sizes
        sessions = self._compiled(program, once, found, fresh, sizes, memo)
        results = self._measured(program, once, sessions, checks, fresh, seconds)
        judged = self._judged(program, once, sessions, results, certifier)
        if all(made.exact for made in sessions.values()):
            found = replace(found, forms=tuple(form for form in found.forms if form.exact) or found.forms)
        made = assemble(work, program, once, found, sessions, results, checks, not self._without_original)
        made.report = self._report(program, made, results, found, sessions, budget, judged)
        made.recipe = found.recipe
        return made

    def _check_given(
        self, evaluate: Evaluate | None, budget: Budget | None, calibration: Iterable[Any] | None, batch: Any
    ) -> None:
        """Raises `InputError` where something is missing that the gates, or the recipe, ask for."""
        parts = self._parts
        lossy = parts.plan is not None and not parts.exact
        if lossy and evaluate is None and budget is not None and budget.bounded:
            names = ", ".join({**budget.max_loss, **budget.segments})
            raise InputError(
                f"what serves approximates, and its loss of {names} was certified: give evaluate=..., so that it is again"
            )
        if evaluate is not None:
            check_budget(budget, evaluate)
        fitted = [technique.name for technique in parts.recipe if technique.fitted]
        if fitted and calibration is None and batch is None:
            raise InputError(
                f"{', '.join(fitted)} is fitted to traffic, and the artifact holds none: give calibration=..., some thousands of real rows"
            )
        if batch is None and self._old.example is None:
            raise InputError("the artifact holds no batch: give batch=..., one as the model takes it")

    @property
    def _without_original(self) -> bool:
        """Whether what serves stands in for the original as well."""
        original, plain = self._parts.original.model, self._parts.program
        source = original.source if isinstance(original, AsCalled) else None
        return source is not None and plain is not None and source.model is plain.model

    @property
    def _on_nonfinite(self) -> Any:
        guard = self._parts.guard
        return "propagate" if self._parts.apart or (guard is not None and not guard.finite) else "raise"

    def _program(self, model: Any, calibration: Iterable[Any] | None, batch: Any) -> Program:
        """The new checkpoint, called as the old one was. Raises `UpdateRefused` where it is called otherwise."""
        old = self._parts.original.layout
        owner, entry = target_of(model)
        function, traffic = getattr(owner, entry), batches_of(calibration)
        otherwise = "the model is not called as the one before: "
        if batch is None:
            assert self._old.example is not None
            args, kwargs = old.arguments(self._old.example)
            if odd := other_arguments(old, function, args, kwargs):
                raise self.refused(
                    f"{otherwise}{odd}", "call its arguments as before, or compress the model anew"
                )
            batch = kwargs or args
        else:
            read_batch(function, batch)
        cure = "give the same architecture, or batch=... in the form of the first example; compress another model anew"
        try:
            program = read_model(self._work, model, batch, None, None, old)
        except InputError as error:
            if isinstance(error.__cause__, IndexError) and (shorter := shorter_than(self._parts, owner)):
                raise self.refused(
                    f"{shorter}, and the example looks up later ones",
                    "keep the rows that were there (tables may grow), or give batch=... with ids that the new tables have",
                ) from error
            raise self.refused(f"{otherwise}{error}", cure) from error
        if program is None:
            raise self.refused("the model cannot be copied to be looked at", "compress it anew")
        if odd := spoilt(program.model):
            raise self.refused(f"{odd} holds what is not a number", "look at how it was trained")
        return with_calibration(self._work, program, traffic)

    def _rewritten(self, program: Program, memo: Memo) -> Rewritten:
        """The new checkpoint after the recipe, what has not changed taken over."""
        recipe = self._parts.recipe
        cure = "compress the model anew"
        try:
            plain, asked = captured(self._work, program, recipe, memo)
        except CaptureError as error:
            raise self.refused(f"the model was not captured: {error}", cure) from error
        expected = plain if self._parts.program is None else self._parts.program
        if (given := answer_types(plain.graph)) != (wanted := answer_types(expected.graph)):
            raise self.refused(
                f"its answers are {', '.join(given)}, expected {', '.join(wanted)}",
                "convert the model, or compress it anew",
            )
        self._earlier = earlier_in(self._parts, plain.graph)
        for graph in (plain, asked):
            self._earlier.attach(graph.graph)
        try:
            found = apply_recipe(self._work, program, recipe, True, None, self._show, memo)
        except FastrecError as error:
            raise self.refused(f"its recipe cannot be applied: {error}", cure) from error
        assert found is not None  # it was captured
        names, kept = ([technique.name for technique in steps] for steps in (recipe, found.recipe))
        if names != kept:
            raise self.refused(
                f"its recipe cannot be applied: of {', '.join(names)} only {', '.join(kept) or 'nothing'} had anything to do "
                f"({'; '.join(f'{skip.site}: {skip.reason}' for skip in self._work.skipped[:3])})",
                cure,
            )
        was, now = (
            {c.rule for step in steps for c in step.changes}
            for steps in (self._parts.report.steps, self._work.steps)
        )
        if was - now:
            self._work.notes.append(
                f"done to the model before, and not to this one: {', '.join(sorted(was - now))}. Rules are checked on the example: "
                "batch=... gives another than the drawn one"
            )
        return found

    def _compiled(
        self,
        program: Program,
        once: Once,
        found: Rewritten,
        fresh: Batches,
        sizes: Sequence[int],
        memo: Memo,
    ) -> dict[str, Made]:
        """The sessions of the plan, each checked against the new original."""
        pairs: list[tuple[Form, Any]] = []
        for name, source in self._parts.sources.items():
            form = next((one for one in found.forms if label_of(source.backend, one) == name), None)
            if form is None:
                raise self.refused(f"the recipe gives no {name!r} of this model", "compress it anew")
            pairs.append((form, source.backend))
        bounds = read_guard(found.asked, "propagate").bounds
        made = compile_pairs(self._work, program, once, pairs, fresh, sizes, self._show, bounds, memo)
        if failed := [trial for trial in self._work.trials if trial.session not in made and trial.rows == 0]:
            raise self.refused(f"{failed[0].session}: {failed[0].reason}", "compress the model anew")
        return made

    def _measured(
        self,
        program: Program,
        once: Once,
        sessions: Mapping[str, Made],
        checks: Checks,
        fresh: Batches,
        seconds: float,
    ) -> list[SizeResult]:
        """The plan, session by session beside the new original, which serves where one is slower."""
        plan, results = self._parts.plan, []
        if plan is None:
            return []
        private = program.private(buffers=False)
        before = original_call(private)
        for rows, name in zip(plan.sizes, plan.names, strict=True):
            self._show(f"measuring {at([rows], program.layout.counted)}")
            held = {name: sessions[name]} if name in sessions else {}
            after = served_call(serving(private, held, Plan((rows,), (name,)), checks, once))
            result = confirm(rows, name, before, after, fresh, seconds / len(plan.sizes))
            if result.speedup.slower and name != ORIGINAL and not self._without_original:
                self._work.notes.append(
                    f"{at([rows], program.layout.counted)} {name} was measured slower than the new original, which serves there"
                )
                result = as_original(result)
            results.append(result)
        return results

    def _judged(
        self,
        program: Program,
        once: Once,
        sessions: Mapping[str, Made],
        results: Sequence[SizeResult],
        certifier: Certifier | None,
    ) -> Judgement:
        """What is lost. Raises `UpdateRefused` where that is not certified."""
        if not results:
            return Judgement()
        if certifier is None:
            if any(result.session in sessions and not sessions[result.session].exact for result in results):
                self._work.notes.append(
                    "what serves approximates, and what it loses was not certified: no evaluate"
                )
            return Judgement()
        self._show("evaluating what serves")
        judged = judge_each(program, once, sessions, certifier, results)
        for name, one in judged.items():
            if not one.holds:
                raise self.refused(
                    f"{name}: {one}", "give more labelled rows, a wider budget, or compress the model anew"
                )
        return most(judged.values())

    def _report(
        self,
        program: Program,
        made: CompressedModel,
        results: Sequence[SizeResult],
        found: Rewritten,
        sessions: Mapping[str, Made],
        budget: Budget | None,
        judged: Judgement,
    ) -> Report:
        """The account of the update. Raises `UpdateRefused` where the tables take more than they may."""
        serves = made.program if made.plan is not None and made.program is not None else made.original
        tables = tables_of(serves.model, budget)
        if tables is not None and not tables.met:
            raise self.refused(
                str(tables), "allow more, budget=Budget(bytes=...), or compress the model anew"
            )
        assert self._earlier is not None
        coded, folded = self._earlier.coded.values(), self._earlier.folded.values()
        updated = Updated(
            self._old.digest,
            sum(rows for _, rows in coded),
            sum(reused for reused, _ in coded),
            len(folded),
            sum(reused == rows for reused, rows in folded),
        )
        report = account(self._work, program, made, results, found.recipe, sessions, budget)
        made.report = replace(
            report,
            accuracy=judged.accuracy,
            segments=judged.segments,
            work=work_of(found, made),
            updated=updated,
        )
        return replace(made.report, status=status_of(made, None))


def _allowed(report: Report) -> Budget | None:
    """The budget that a report tells of; None where nothing was bounded."""
    losses = {one.metric: one.allowed for one in report.accuracy if one.allowed is not None}
    segments = {one.metric: one.allowed for one in report.segments if one.allowed is not None}
    tables = None if report.tables is None else report.tables.allowed
    if not (losses or segments or tables or report.p95_ms):
        return None
    return Budget(losses, bytes=tables, segments=segments, p95_ms=report.p95_ms)
