"""What the examples of a whole way tell: how good lists are and how long calls take, as tables in Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrec.measure import interleaved, machine
from fastrec.wording import duration, spans, times

Lists = Sequence[Tensor]
Way = Mapping[str, Callable[[Any], Any]]
"""The steps of a request by name, each of which takes what the one before gave."""


def ndcg(shown: Lists, wanted: Lists) -> float:
    """The mean NDCG of lists, best first, of which what is among the wanted counts."""
    hits = torch.stack([torch.isin(*both).float() for both in zip(shown, wanted, strict=True)])
    discounts = 1 / torch.arange(2, hits.shape[1] + 2).log2()
    most = torch.stack([discounts[: len(items)].sum() for items in wanted])
    return float(((hits * discounts).sum(1) / most).mean())


def recall(found: Lists, wanted: Lists) -> float:
    """The mean share of the wanted that was found."""
    shares = [torch.isin(items, some).float().mean() for some, items in zip(found, wanted, strict=True)]
    return float(torch.stack(shares).mean())


def through(way: Way, given: Any, end: str = "") -> Any:
    """What comes of a request in front of the step `end`, or after all."""
    for name, step in way.items():
        if name == end:
            break
        given = step(given)
    return given


def timed(ways: Mapping[str, Way], requests: Sequence[Any], seconds: float) -> list[list[str]]:
    """The medians of each step, the same given to all ways, and of the whole; how many times faster the second way is; 95 % intervals."""
    first, second, *_ = ways
    start, rows = next(iter(ways[first])), []
    for name in (*ways[first], "all steps"):
        calls = {label: way.get(name, partial(through, way)) for label, way in ways.items()}
        end = name if name in ways[first] else start

        def given(turn: int, end: str = end) -> Any:
            return through(ways[first], requests[turn % len(requests)], end)

        samples = interleaved(calls, given, seconds=seconds)
        took, ratio = [samples.latency(label) for label in ways], samples.ratio(first, second)
        cells = [_with(duration, x.p50, x.low, x.high) for x in took]
        cells.insert(2, _with(times, ratio.value, ratio.low, ratio.high))
        rows.append([name, *cells])
    return rows


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, all but its first column to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run(main: Callable[[bool], Sequence[str]], text: str | None) -> None:
    """Runs an example as the command line says, prints its tables with the machine, and writes them where asked."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--short", action="store_true", help="on a part of the data")
    parser.add_argument("--table", type=Path, help="a file for the tables, in Markdown")
    given = parser.parse_args()
    told = "\n\n".join([*main(given.short), f"Machine: {machine()}"])
    print(f"\n{told}")
    if given.table:
        given.table.write_text(f"{told}\n")


def _with(says: Callable[[float], str], value: float, low: float, high: float) -> str:
    return f"{says(value)} [{spans(says(low), says(high))}]"
