"""`python -m benchmarks.spread`: what a search takes without workers, with one and with two, each on a core of its own.

Writes `benchmarks/results/spread/<machine>.json` and the table in `docs/searching.md`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastrec.distributed.searching import ray_workers
from fastrec.measure import Machine, Ratio, interleaved, machine
from fastrec.packages import package
from fastrec.plain import from_plain, loads
from fastrec.tried import said
from fastrec.wording import duration, spans, times

from .marks import put
from .pages import ROOT, run
from .searching import SIZES, compressed, models

PAGE = ROOT / "docs" / "searching.md"
SCHEMA = 1
LIMIT = 1800.0
"""Seconds that no search of these takes: what is measured is how long all trials take, not how many fit."""
WORKERS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """One search: its workers, seconds from call to answer, trials that were made and that there was no time for, what was found, and at each size how much faster
    that is than what was found without workers."""

    data: str
    workers: int
    seconds: float
    made: int
    left: int
    recipe: str
    faster: Mapping[str, Ratio]


@dataclass(frozen=True)
class Spread:
    """Every search, and the machine."""

    machine: Machine
    rows: tuple[Row, ...]


def measure(seconds: float, only: Sequence[str]) -> Spread:
    """The search of each model with so many workers, in the same process."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = package("ray", "ray", "distributed.searching")
    rows: list[Row] = []
    for data, model, parts in models():
        if only and not any(word in data for word in only):
            continue
        first: Any = None
        for count in WORKERS:
            if count:
                ray.init(address="local", num_cpus=count, include_dashboard=False, log_to_driver=False)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trials.jsonl"
                began = time.perf_counter()
                found = compressed(
                    model, parts, seconds=LIMIT, resume=path, workers=ray_workers(count) if count else None
                )
                took = time.perf_counter() - began
                made = len(path.read_text().splitlines()) - 1
            if count:
                ray.shutdown()
            first = first or found
            left = sum(one.outcome == "not tried" for one in found.report.searched)
            faster = _faster(first, found, parts, seconds)
            rows.append(Row(data, count, took, made, left, said(found.recipe), faster))
            print(rows[-1], flush=True)
    return Spread(machine(), tuple(rows))


def _faster(
    first: nn.Module, found: nn.Module, parts: Mapping[str, tuple[Tensor, ...]], seconds: float
) -> dict[str, Ratio]:
    """What was found without workers over what was found, on rows that nothing has seen; of one model with itself where they are the same."""
    *inputs, labels = parts["test"]
    ratios = {}
    for size in SIZES:

        def draw(index: int, size: int = size) -> list[Tensor]:
            ids = torch.randint(len(labels), (size,), generator=torch.Generator().manual_seed(index))
            return [x[ids] for x in inputs]

        calls = {"first": lambda batch: first(*batch), "found": lambda batch: found(*batch)}
        seen = interleaved(calls, draw, seconds=seconds, min_rounds=20, max_rounds=2000, warmup=3)
        ratios[str(size)] = seen.ratio("first", "found")
    return ratios


def table(found: Spread) -> str:
    """The page's table."""
    lines = [
        f"{found.machine}", "",
        "| model | workers | took | trials | not tried | found | faster than what was found without workers, at 1 | at 100 | at 1000 |",
        "|---|--:|--:|--:|--:|---|--:|--:|--:|",
    ]  # fmt: skip
    for row in found.rows:
        faster = " | ".join(
            f"{times(one.value)} ({spans(times(one.low), times(one.high))})" for one in row.faster.values()
        )
        lines.append(
            f"| {row.data} | {row.workers or 'none'} | {duration(row.seconds)} | {row.made} | {row.left} | `{row.recipe}` | {faster} |"
        )
    return "\n".join(lines)


def with_table(page: str, found: Spread) -> str:
    """The page with this table between its marks."""
    return put(page, "spread", table(found))


def read(path: Path) -> Spread:
    """What was measured before."""
    return from_plain(Spread, loads(path.read_text(), path.name, SCHEMA), path.name)


def show(found: Spread) -> None:
    """Puts it on the page."""
    PAGE.write_text(with_table(PAGE.read_text(), found))


if __name__ == "__main__":
    run(__doc__, "spread", SCHEMA, measure, show)
