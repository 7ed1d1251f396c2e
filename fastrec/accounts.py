"""The account of a call: what was done and measured, what it is called in the end, and what work is left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from .budget import Budget
from .compressed import CompressedModel
from .cost import per_candidate, per_request
from .journal import Journal
from .limits import tables_of
from .measure import machine, tensor_bytes
from .program import Program
from .recipe import Recipe
from .report import Memory, Report, SizeResult, Status, Work
from .rewriting import Rewritten
from .search import Searched
from .sessions import Made

__all__ = ["account", "status_of", "work_of"]


def account(
    work: Journal,
    program: Program,
    made: CompressedModel,
    results: Sequence[SizeResult],
    recipe: Recipe,
    sessions: Mapping[str, Made],
    budget: Budget | None,
) -> Report:
    """The report of what was done, measured and noted, and of what the budget says beside the loss."""
    improved = made.plan is not None
    programs = [made.program] if made.program is not None and improved else []
    kept = [p.model for p in (made.original, *programs, *(session.program for session in sessions.values()))]
    serving = made.program if improved and made.program is not None else made.original
    return Report(
        status="improved" if improved else "unchanged",
        sizes=tuple(results),
        steps=tuple(work.steps),
        skipped=tuple(work.skipped),
        trials=tuple(work.trials),
        fidelity=max((m.fidelity for m in sessions.values()), key=lambda found: found.max_abs, default=None),
        memory=Memory(
            tensor_bytes(program.model),
            tensor_bytes(*kept),
            sum(s.resident_bytes for s in made.sessions.values()),
        ),
        machine=machine(),
        recipe=recipe,
        seconds=time.perf_counter() - work.began,
        notes=tuple(work.notes),
        counted=program.layout.counted,
        tables=tables_of(serving.model, budget),
        p95_ms=None if budget is None else budget.p95_ms,
    )


def status_of(made: CompressedModel, best: Searched | None) -> Status:
    """What became of it, in a word: what was asked for and not reached comes first."""
    report = made.report
    if not report.met:
        return "budget_missed"
    exact = made.plan is None or made.exact
    if best is not None and exact and (not best.certifiable or (not best.recipe.exact and report.refused)):
        return "not_certifiable"
    return "unchanged" if made.plan is None else "improved"


def work_of(found: Rewritten | None, made: CompressedModel) -> Work | None:
    """The multiply-adds of what serves; of what the recipe made where nothing does. None where no rows are counted."""
    if found is None or not found.captured or found.plain.layout.rows is None:
        return None
    serving = found.fast if made.plan is None else found.form(lossy=not made.exact).make()
    return Work(per_candidate(found.plain), per_candidate(serving), per_request(serving))
