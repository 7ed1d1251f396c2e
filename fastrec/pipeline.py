"""`compress`: the story on one page. Read the program, apply the recipe, compile, verify, measure, choose."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, Literal

from torch import nn

from .accounts import account, status_of, work_of
from .answered import answered
from .arguments import (
    check_budget,
    check_workers,
    own_random_state,
    read_backends,
    read_recipe,
    read_resume,
    read_seconds,
    read_sizes,
)
from .assembly import Checks, assemble, judge_each, serving
from .backends import Backend
from .breakdowns import set_aside, where_time_goes
from .budget import Budget
from .certify import Certifier, Evaluate, Judgement, most
from .compressed import CompressedModel
from .declared import Declared
from .errors import InputError
from .guards import read_guard
from .inputs import read_layout
from .journal import Journal
from .limits import small_enough
from .measure import Breakdown
from .memo import Memo
from .plan import (
    ORIGINAL,
    Batches,
    Plan,
    affordable,
    as_original,
    better,
    choose,
    confirm,
    preferred,
    share,
    worth_it,
)
from .program import Program, target_of
from .progress import Stages, stages
from .recipe import Recipe
from .report import SizeResult
from .request import Once
from .rewriting import apply_recipe, fresh_batches, read, rewritten
from .search import Searched, Task, Workers, find_recipe, is_asked
from .sessions import Made, compile_forms, original_call, served_call, session_call
from .techniques import Technique
from .undeclared import advice
from .wording import at

__all__ = ["compress"]

_SIZES = (1, 32, 100, 500, 1000)
_SECONDS, _SEARCHING, _LONG = 60.0, 300.0, 30.0
# Bytes of a model from which what does not serve is let go at once, which takes some tenths of a second.
_LARGE = 1 << 20


def compress(
    model: nn.Module | Callable[..., Any],
    batch: Any,
    *,
    request_features: Declared | None = None,
    check_request: bool = True,
    calibration: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    budget: Budget | None = None,
    recipe: Technique | Sequence[Technique] | Recipe | None = None,
    resume: str | PathLike[str] | None = None,
    workers: Workers | None = None,
    backends: Backend | Sequence[Backend] | None = None,
    batch_sizes: Sequence[int] = _SIZES,
    guards: bool = True,
    on_nonfinite: Literal["raise", "propagate"] = "raise",
    keep_original: bool = True,
    progress: bool = True,
    seconds: float | None = None,
) -> CompressedModel:
    """A faster equivalent of a trained recommender, and the report of what it gains and costs.

    `model` is a torch module, or a bound method of one (`model.predict`); `batch` one real batch in whatever form
    it takes: a tensor, a tuple of positional arguments, a dict of keyword arguments, nested containers. Nothing
    else is needed: the changes are exact, every session is checked against the original, and one serves only
    where it was measured faster, with the caller's number of threads.

    `request_features` names what is the same in all rows of one call (the user, the context), as names of features
    or a mapping `name -> True | columns` of a matrix: it is then computed once for all candidates, and may be given
    repeated, as before, or once, with one row. Calls whose rows differ in it raise `RequestMismatchError`, unless
    `check_request=False`.

    `calibration` gives more real batches, whose rows are then used for timing and by techniques that look at traffic.
    `evaluate(model)` gives metrics, as `{"auc": 0.79}`; made by `fastrec.measure.evaluator` it certifies. Approximate
    techniques then serve, whole or in milder settings, only where their loss is certified to be within `budget` (None:
    0.0002 of AUC, nothing of other metrics); where the evaluator has segments, the loss of each is told, and bounded
    by `Budget(segments=...)`.

    `recipe` names the techniques. None is every exact one that saves time, and with `evaluate` and a `budget` that bounds a loss or a
    time, the fastest combination with approximate ones that a search finds: tried on one half of the labelled rows, certified on
    the other. `resume` names a file that keeps its trials, so that a search that was ended goes on, and `workers` make them beside one another, as those of
    `fastrec.distributed.searching.ray_workers`. `backends` who may run them (None: those installed), `batch_sizes` the numbers of
    rows to measure. `guards=False` drops the checks of ids and finiteness, `on_nonfinite="propagate"` those of
    finiteness alone. With `Budget(bytes=...)` the tables are brought under so many bytes, each in the form that moves the answers
    least, and what is small enough serves, faster or not. The compressed model falls back on the original where it has to, and so holds its tables; with
    `keep_original=False` what serves does that too, in its plain form. `seconds` is how long compiling and measuring may take, about (None: 60, with a search 300);
    what a recipe fits comes on top. The model, global threads, seeds and warnings are left
    as they were; its tensors are shared, not copied.

    Raises `InputError` for arguments that do not fit, `TechniqueError` for a recipe that cannot be applied to this
    model, `BackendUnavailable` for a backend that is asked for by name and not installed. A model that cannot be
    sped up comes back working, with `report.status == "unchanged"` and the reasons.

    Example:
        >>> import torch
        >>> from fastrec import compress
        >>> tower = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).eval()
        >>> fast = compress(tower, torch.randn(4, 8), batch_sizes=(1,), seconds=1, backends=[], progress=False)
        >>> fast(torch.zeros(3, 8)).shape, fast.report.status
        (torch.Size([3, 1]), 'unchanged')
    """
    began = time.perf_counter()
    if isinstance(getattr(model, "__self__", model), CompressedModel):
        raise InputError("the model is compressed already: give the one that it was made of")
    chosen, sizes = read_backends(backends), read_sizes(batch_sizes)
    if on_nonfinite not in ("raise", "propagate"):
        raise InputError(f"on_nonfinite is 'raise' or 'propagate', got {on_nonfinite!r}")
    check_budget(budget, evaluate)
    steps = read_recipe(recipe, budget)
    searching = recipe is None and is_asked(budget, evaluate)
    work = Journal(began, began + read_seconds(seconds, _SEARCHING if searching else _SECONDS))
    trials = read_resume(resume, searching)
    check_workers(workers, searching)
    with own_random_state(), stages(progress) as show:
        show("reading the model")
        program = read(work, model, batch, request_features, calibration)
        if program is None:
            return _unreadable(work, model, batch, steps)
        sizes = answered(work, program, sizes)
        once = Once(program.layout.features, check=check_request)
        memo = Memo()
        best: Searched | None = None
        certifier: Certifier | None = None
        if searching and budget is not None and evaluate is not None:
            task = Task(
                program, tuple(work.calibration), once, evaluate, budget, tuple(chosen), sizes, guards, steps
            )  # fmt: skip
            best = find_recipe(work, task, memo, show, trials, workers)
            steps, certifier = best.recipe, best.certifier
            work.restart()
        elif evaluate is not None:
            certifier = Certifier(program, once, evaluate, budget)
        found = apply_recipe(work, program, steps, recipe is not None, certifier, show, memo)
        checks = Checks()
        sessions: dict[str, Made] = {}
        results: list[SizeResult] = []
        judged = Judgement()
        parts: tuple[Breakdown, ...] = ()
        if found is not None:
            program = replace(program, layout=replace(program.layout, exempt=found.plain.layout.exempt))
            small = small_enough(found, budget)
            found, bounded, keep_original = small or found, small is not None, keep_original and small is None
            guard = read_guard(found.asked, on_nonfinite, found.recipe.promised)
            checks = Checks(guard if guards else None, on_nonfinite == "propagate")
            fresh = fresh_batches(work, once, found, guard)
            steps = found.recipe
            if not request_features and found.captured:
                # What only approximates saves no multiply-adds.
                graphs = tuple(t for t in steps if t.level == "graph" and t.exact)
                work.notes += advice(found.plain, found.fast, lambda asked: rewritten(asked, graphs))
            runners = chosen if found.captured else [backend for backend in chosen if backend.modules]
            sessions = compile_forms(
                work, program, once, found.forms, runners, fresh, sizes, show, guard.bounds, memo
            )
            if not sessions and not work.trials:
                work.notes.append(
                    "no backend was given or is installed that runs it, so nothing was measured"
                )
            measure = partial(_measure, work, program, once, sessions, checks, fresh, sizes, show, bounded)
            work.deadline -= set_aside(work)
            results, judged = _settle(work, program, once, sessions, measure, certifier, show)
            work.deadline += set_aside(work)
            show("looking where the time goes")
            parts = where_time_goes(work, program, found.plain, once, sessions, results, fresh)
        made = assemble(work, program, once, found, sessions, results, checks, keep_original)
        made.report = replace(
            account(work, program, made, results, steps, sessions, budget),
            accuracy=judged.accuracy,
            segments=judged.segments,
            work=work_of(found, made),
            searched=() if best is None else best.tried,
            breakdown=parts,
        )
        made.report = replace(made.report, status=status_of(made, best))
        made.recipe = steps
    if made.report.memory.before_bytes >= _LARGE:
        # Graphs refer to themselves, so their tables would stay until Python next looks for such circles.
        del found, memo
        gc.collect()
    return made


def _settle(
    work: Journal,
    program: Program,
    once: Once,
    sessions: dict[str, Made],
    measure: Callable[[], list[SizeResult]],
    certifier: Certifier | None,
    show: Stages,
) -> tuple[list[SizeResult], Judgement]:
    """What serves each size and the most that it loses; sessions that approximate are dropped where that is not certified."""
    while True:
        results = measure()
        if certifier is None or not results:
            return results, Judgement()
        show("evaluating what serves")
        judged = judge_each(program, once, sessions, certifier, results)
        refused = {
            id(sessions[name].program.model): str(one) for name, one in judged.items() if not one.holds
        }
        if not refused:
            return results, most(judged.values())
        for name, made in list(sessions.items()):
            if id(made.program.model) in refused:
                del sessions[name]
                work.failed(name, refused[id(made.program.model)])


def _measure(
    work: Journal,
    program: Program,
    once: Once,
    sessions: Mapping[str, Made],
    checks: Checks,
    fresh: Batches,
    sizes: Sequence[int],
    show: Stages,
    bounded: bool,
) -> list[SizeResult]:
    """For each size the winner, timed again as it will serve, on inputs that did not choose it.

    Where memory is `bounded` a session serves whether or not it is faster than the original, which may not.
    """
    if not sessions:
        return []
    results: list[SizeResult] = []
    private = program.private(buffers=False)
    if program.layout.rows is None:
        sizes = (1,)
    for index, rows in enumerate(sizes):
        show(f"measuring {at([rows], program.layout.counted)}")
        parts = sizes[index:]
        before = original_call(private)
        if results and not affordable(before, fresh(rows, 0), len(sessions), work.deadline):
            work.notes.append(
                f"not measured at {rows} rows and above, which takes too long: served as at {sizes[index - 1]}"
            )
            break
        calls = {name: session_call(made.session, once) for name, made in sessions.items()}
        _, trials = choose(rows, before, calls, fresh, share(work.deadline, parts, 4.0) * 0.5)
        work.trials += trials
        exact = {name for name, made in sessions.items() if made.exact}
        name = preferred(trials, exact, {name for name, made in sessions.items() if not made.cut})
        served = serving(private, {name: sessions[name]}, Plan((rows,), (name,)), checks, once)
        after = served_call(served)
        result = confirm(rows, name, before, after, fresh, share(work.deadline, parts, 4.0) * 0.5)
        if result.undecided:
            result = confirm(rows, name, before, after, fresh, share(work.deadline, parts, _LONG) * 0.5)
        if not bounded and not worth_it(result):
            # What is checked in front of a session is checked in front of the original too.
            checked = served_call(serving(private, {}, Plan((rows,), (ORIGINAL,)), checks, once))
            seconds = share(work.deadline, parts, 4.0) * 0.25
            result = better(result, confirm(rows, ORIGINAL, before, checked, fresh, seconds))
        results.append(result)
    if bounded or any(worth_it(result) for result in results):
        return results
    return [as_original(result) for result in results]


def _unreadable(work: Journal, target: Any, batch: Any, recipe: Recipe) -> CompressedModel:
    """A model that cannot be looked at, served as it is."""
    model, entry = target_of(target)
    layout, _ = read_layout(getattr(model, entry), batch)
    program = Program(model, batch, layout, entry)
    made = CompressedModel(program, {}, None, None, Once(layout.features))
    made.report, made.recipe = account(work, program, made, (), recipe, {}, None), recipe
    return made
