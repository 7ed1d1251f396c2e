"""The compressed model of the sessions that serve, and what each of them loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, fx

from .as_called import plainly
from .certify import Certifier, Judgement
from .compressed import CompressedModel
from .guards import Guard
from .journal import Journal
from .moved import release_moved
from .nonfinite import Apart
from .plan import ORIGINAL, Plan
from .program import Program
from .report import SizeResult
from .request import Once
from .rewriting import Rewritten
from .rows import count_rows
from .sessions import Made

__all__ = ["Checks", "assemble", "judge", "judge_each", "serving"]


@dataclass(frozen=True)
class Checks:
    """What is done about a batch before a session answers: ids and floats refused, rows that are not finite kept apart."""

    guard: Guard | None = None
    propagate: bool = False


def serving(
    original: Program, sessions: Mapping[str, Made], plan: Plan, checks: Checks, once: Once
) -> CompressedModel:
    """A compressed model of these sessions."""
    # Exact sessions pass on what is not finite by themselves.
    lossy = any(not sessions[name].exact for name in plan.names if name in sessions)
    apart = Apart(original.layout) if checks.propagate and lossy else None
    held = {name: made.session for name, made in sessions.items()}
    served = CompressedModel(original, held, plan, checks.guard, once, apart)
    served.sources = {name: made.source for name, made in sessions.items() if made.source is not None}
    return served


def judge(
    original: Program,
    once: Once,
    sessions: Mapping[str, Made],
    certifier: Certifier,
    results: Sequence[SizeResult],
    exact: bool,
) -> Judgement:
    """What is lost by what serves these sizes."""
    plan = Plan(tuple(r.rows for r in results), tuple(r.session for r in results))
    served = serving(original, sessions, plan, Checks(), once)
    return certifier.judge(partial(_answers, served, once), exact=exact)


def judge_each(
    program: Program,
    once: Once,
    sessions: Mapping[str, Made],
    certifier: Certifier,
    results: Sequence[SizeResult],
) -> dict[str, Judgement]:
    """What each session that serves one of these sizes and approximates loses, by its name; where none does, what all of them do.

    Each alone: labelled rows come in batches that one of them would serve, and callers' do not.
    """
    original = program.private(buffers=False)
    lossy = {r.session: r for r in results if r.session != ORIGINAL and not sessions[r.session].exact}
    if not lossy:
        return {"": judge(original, once, sessions, certifier, results, exact=True)}
    return {
        name: judge(original, once, sessions, certifier, [result], exact=False)
        for name, result in lossy.items()
    }


def _answers(served: CompressedModel, once: Once, flat: list[Tensor]) -> Sequence[Tensor]:
    """What serves this number of rows, unchecked."""
    return served.session(count_rows(once.candidates, flat) or 1)(*flat)


def assemble(
    work: Journal,
    program: Program,
    once: Once,
    found: Rewritten | None,
    sessions: dict[str, Made],
    results: Sequence[SizeResult],
    checks: Checks,
    keep_original: bool,
) -> CompressedModel:
    """The compressed model, holding only what serves."""
    names = {result.session for result in results} - {ORIGINAL}
    tried = any(not made.exact for made in sessions.values())
    for name in set(sessions) - names:
        del sessions[name]
    work.notes += [
        f"{name}: a row's answer was seen to move by up to {made.moved:.1g} with the rows beside it, the rounding of float32"
        for name, made in sessions.items()
        if made.moved
    ]
    lossy = any(not sessions[name].exact for name in names)
    if found is not None and not lossy and not all(form.exact for form in found.forms):
        why = (
            "at no number of rows was it faster than what keeps the answer"
            if tried
            else "no session of it may, as its trials say"
        )
        work.notes.append(f"nothing that the recipe approximates serves: {why}")
    original = program.private(buffers=False).bare()
    if found is None or not names:
        made = CompressedModel(original, {}, None, checks.guard, once)
        if found is not None and found.captured and once:
            # For the serving form of what is not faster batch by batch.
            form = found.form(lossy=False)
            made.program, made.exact = form.make().bare(), form.exact
        return made
    # Of the other form, if there is one, nothing stays: no table that nobody reads.
    form = found.form(lossy=lossy)
    plain = form.make().bare()
    if any(result.session == ORIGINAL for result in results):
        work.notes.append(
            "the original serves some batch sizes, so its tables are kept beside the rewritten ones"
        )
    elif not keep_original and found.captured:
        original = plainly(program, once, plain)
    elif not keep_original:
        # A model that serves, as its own code says: its codes are there already.
        original = original.with_model(next(iter(sessions.values())).program.model)
    elif isinstance(plain.model, fx.GraphModule):
        release_moved(original, plain.model)
    plan = Plan(tuple(r.rows for r in results), tuple(r.session for r in results))
    made = serving(original, sessions, plan, checks, once)
    made.program, made.exact = plain if found.captured else None, form.exact
    return made
