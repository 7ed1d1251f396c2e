"""Which joins of request and candidate features are taken apart in the zoo, and why the others are not.

`python -m tests.zoo.joins` prints docs/joins.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from fastrec.cost import per_candidate
from fastrec.declared import read_request
from fastrec.request import ask
from fastrec.techniques import Fuse

from . import ZOO, Entry
from .programs import captured

__all__ = ["page"]

_SPLITS = (
    "compute once",
    "select parts",
    "split linears",
    "split sums",
    "share operands",
    "multiply by vector",
    "contract heads",
    "factor products",
    "split cross layers",
)
_HEAD = """# Joins in the test models

Each model of `tests/zoo/` that has features of a request, as `Fuse` leaves it: how often each rule took request and candidates apart, what stays
whole and why, and the multiply-adds per candidate of its matrix products. Written by `python -m tests.zoo.joins`.

| model | the request's | taken apart | stays whole, and why | multiply-adds, before | after |
|---|---|---|---|---:|---:|
"""


def page() -> str:
    """The whole page."""
    return _HEAD + "".join(_row(entry) for entry in ZOO if entry.request)


def _row(entry: Entry) -> str:
    plain = captured(entry)
    features = read_request(plain.layout.features, entry.request)
    asked = ask(replace(plain, layout=replace(plain.layout, features=features)))
    applied = Fuse().apply(asked)
    done = Counter(change.rule for change in applied.changes if change.rule in _SPLITS)
    split = ", ".join(f"{rule} {count}" for rule, count in done.items()) or "-"
    reasons = Counter(skip.reason for skip in applied.skipped if skip.rule == "split")
    whole = (
        "; ".join(reason if count == 1 else f"{reason} ({count})" for reason, count in reasons.items())
        or "nothing"
    )
    names = ", ".join(
        f.name if f.request is True else f"{f.name} columns {', '.join(map(str, f.request))}"
        for f in features
        if not isinstance(f.request, bool) or f.request
    )
    counts = [f"{per_candidate(p):,.0f}" for p in (plain, asked.with_model(applied.model))]
    return f"| {entry.name} | {names} | {split} | {whole} | {counts[0]} | {counts[1]} |\n"


if __name__ == "__main__":
    print(page(), end="")
