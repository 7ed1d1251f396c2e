"""Features that look like the request's though nobody said so: what declaring them would save.

Equal rows in one example prove nothing, so nothing is assumed of them; the report tells, and the caller decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .cost import per_candidate
from .declared import named, read_request
from .errors import FastrecError
from .program import Program
from .request import Once, ask

__all__ = ["advice"]


def advice(plain: Program, now: Program, rewrite: Callable[[Program], Program]) -> list[str]:
    """A note for the report; none where declaring would save no multiply-adds, as of a mask that says the same in every row.

    `plain` is the captured program, `now` the same rewritten, `rewrite` what rewrote it. Cost: one more rewrite.
    """
    found = Once(plain.layout.features).agreeing(plain.batch)
    rows = plain.layout.rows
    if not found or rows is None or rows < 2:
        return []
    names = ", ".join(named(*declared) for declared in found.items())
    note = f"all rows of the example agree in {names}; where they do in every call, declare it in request_features"
    try:
        features = read_request(plain.layout.features, found)
        asked = ask(replace(plain, layout=replace(plain.layout, features=features)))
        before, after = per_candidate(now), per_candidate(rewrite(asked))
    except FastrecError:
        return [note]
    if after >= before:
        return []
    return [f"{note}: {before:,.0f} multiply-adds per candidate would be {after:,.0f}"]
