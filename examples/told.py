"""What the examples of a whole way tell: how good lists are and how long calls take, as tables in Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrec.measure import interleaved, machine
from fastrec.wording import duration, spans, times

Lists = Sequence[Tensor]


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


def timed(
    calls: Mapping[str, Callable[[Any], object]], inputs: Callable[[int], Any], seconds: float
) -> list[str]:
    """The medians of calls that take turns, and how many times faster the last is than the first, with 95 % intervals."""
    samples = interleaved(calls, inputs, seconds=seconds)
    first, *_, last = calls
    ratio, took = samples.ratio(first, last), [samples.latency(name) for name in calls]
    return [
        *(f"{duration(x.p50)} [{spans(duration(x.low), duration(x.high))}]" for x in took),
        f"{times(ratio.value)} [{spans(times(ratio.low), times(ratio.high))}]",
    ]


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
