"""`python -m benchmarks.searching`: what `compress` finds by itself within a budget, beside recipes that are given.

Writes `benchmarks/results/searching/<machine>.json` and the table in `docs/searching.md`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor, nn

import fastrec
from fastrec.compressed import CompressedModel
from fastrec.measure import Machine, Ratio, evaluator, interleaved, machine
from fastrec.measure.loss import loss_of
from fastrec.plain import from_plain, loads
from fastrec.techniques import (
    Fuse,
    ProjectPCA,
    PruneNeurons,
    QuantizeLinears,
    QuantizeTables,
    Recover,
    Technique,
)
from fastrec.tried import said
from fastrec.wording import duration, spans, times

from .marks import put
from .pages import ROOT, run

PAGE = ROOT / "docs" / "searching.md"
SCHEMA = 1
SIZES = (1, 100, 1000)
BUDGET = fastrec.Budget({"auc": 2e-4})
SEARCHING = 600.0
ORIGINAL = "the model as it is"
INT8 = (Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears())
GIVEN: Mapping[str, tuple[Technique, ...]] = {
    "exact": (Fuse(),),
    "int8": INT8,
    "ProjectPCA(energy=0.95), int8": (ProjectPCA(energy=0.95, least_bytes=0, least=4096), *INT8),
    "PruneNeurons(0.25), Recover()": (PruneNeurons(0.25), Recover(), Fuse()),
    "PruneNeurons(0.25), Recover(), int8": (PruneNeurons(0.25), Recover(), *INT8),
}


@dataclass(frozen=True)
class Row:
    """One model as `compress` gave it: what it took, the AUC lost on test rows, and at each size its median and how much faster what was found is."""

    data: str
    recipe: str
    approximates: str
    status: str
    seconds: float
    lost: float
    upper: float
    p50: Mapping[str, float]
    found: Mapping[str, Ratio]


@dataclass(frozen=True)
class Searched:
    """Every row, the trials of each search, whether one that went on from half of its trials agrees, and the machine."""

    machine: Machine
    trials: Mapping[str, int]
    resumed: Mapping[str, str]
    rows: tuple[Row, ...]


def models() -> Iterator[tuple[str, nn.Module, Mapping[str, tuple[Tensor, ...]]]]:
    """The trained models of the examples, and the rows of every split, labels last."""
    sys.path.insert(0, str(ROOT / "examples"))
    import hotel_bookings
    import movietweetings

    yield "hotel bookings", *hotel_bookings.trained()
    yield "movietweetings", *movietweetings.trained()


def measure(seconds: float, only: Sequence[str]) -> Searched:
    """A search on every model, and the given recipes beside what it found."""
    rows: list[Row] = []
    trials, resumed = {}, {}
    for data, model, parts in models():
        if only and not any(word in data for word in only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trials.jsonl"
            began = time.perf_counter()
            found = compressed(model, parts, resume=path, seconds=SEARCHING)
            took = time.perf_counter() - began
            resumed[data] = _resumed(model, parts, path, found)
        trials[data] = sum(one.seconds > 0 for one in found.report.searched)
        rows.append(_row(data, "found", found, found, parts, took, seconds))
        print(rows[-1], flush=True)
        rows.append(_row(data, ORIGINAL, model, found, parts, 0.0, seconds))
        print(rows[-1], flush=True)
        for name, recipe in GIVEN.items():
            began = time.perf_counter()
            given = compressed(model, parts, recipe=recipe)
            took = time.perf_counter() - began
            rows.append(_row(data, name, given, found, parts, took, seconds))
            print(rows[-1], flush=True)
    return Searched(machine(), trials, resumed, tuple(rows))


def compressed(model: nn.Module, parts: Mapping[str, tuple[Tensor, ...]], **settings: Any) -> CompressedModel:
    """What `compress` makes of a model, judged on the rows that it was validated on."""
    *inputs, labels = parts["valid"]
    *known, _ = parts["train"]
    chosen = torch.randperm(len(known[0]), generator=torch.Generator().manual_seed(0))[:8192].split(512)
    return fastrec.compress(
        model, tuple(x[:256] for x in inputs), calibration=[tuple(x[ids] for x in known) for ids in chosen],
        evaluate=evaluator(zip(*(x.split(1000) for x in inputs), strict=True), labels), budget=BUDGET,
        batch_sizes=SIZES, progress=False, **settings,
    )  # fmt: skip


def _resumed(
    model: nn.Module, parts: Mapping[str, tuple[Tensor, ...]], path: Path, found: CompressedModel
) -> str:
    """What a search finds that was ended after half of its trials, as if killed within a line, beside one that was not."""
    lines = path.read_text().splitlines(keepends=True)
    half = len(lines) // 2
    path.write_text("".join(lines[:half]) + lines[half][: len(lines[half]) // 2])
    again = compressed(model, parts, resume=path, seconds=SEARCHING)
    first, second = said(found.recipe), said(again.recipe)
    return f"the same: {first}" if first == second else f"{second}; not ended: {first}"


def _row(
    data: str, name: str, given: nn.Module, found: CompressedModel,
    parts: Mapping[str, tuple[Tensor, ...]], took: float, seconds: float,
) -> Row:  # fmt: skip
    *inputs, labels = parts["test"]
    p50, ratios = {}, {}
    for size in SIZES:

        def draw(index: int, size: int = size) -> list[Tensor]:
            ids = torch.randint(len(labels), (size,), generator=torch.Generator().manual_seed(index))
            return [x[ids] for x in inputs]

        calls = {"given": lambda batch: given(*batch), "found": lambda batch: found(*batch)}
        with torch.inference_mode():
            seen = interleaved(calls, draw, seconds=seconds, min_rounds=20, max_rounds=2000, warmup=3)
        p50[str(size)], ratios[str(size)] = seen.latency("given").p50, seen.ratio("given", "found")
    with torch.no_grad():
        before, after = (
            torch.cat([one(*batch) for batch in zip(*(x.split(1000) for x in inputs), strict=True)])
            for one in (found.original.function, given)
        )
    loss = loss_of("auc", labels.numpy(), before.numpy(), after.numpy())
    lossy, status = "eager torch", ""
    if isinstance(given, CompressedModel):
        lossy, status = "exact" if given.exact else said(given.recipe), given.report.status
    return Row(data, name, lossy, status, took, loss.value, float(loss.upper or 0.0), p50, ratios)


def table(searched: Searched) -> str:
    """The page's table: below 1x a given recipe is faster than what was found."""
    lines = [f"{searched.machine}", ""]
    for data, trials in searched.trials.items():
        lines += [
            f"### {data}", "", f"{trials} trials. A search that was ended after half of them and went on finds {searched.resumed[data]}.", "",
            "| recipe | what serves | status | took | AUC lost | at most (95 %) | found is faster at 1 | at 100 | at 1000 | over all |",
            "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        for row in searched.rows:
            if row.data == data:
                faster = " | ".join(
                    f"{times(row.found[str(n)].value)} ({spans(times(row.found[str(n)].low), times(row.found[str(n)].high))}), "
                    f"{duration(row.p50[str(n)])}"
                    for n in SIZES
                )
                took = duration(row.seconds) if row.seconds else ""
                mean = times(geometric_mean([ratio.value for ratio in row.found.values()]))
                lines.append(
                    f"| {row.recipe} | `{row.approximates}` | {row.status} | {took} | {row.lost:.5f} | {row.upper:.5f} | {faster} | {mean} |"
                )
        lines.append("")
    return "\n".join(lines)


def with_table(page: str, found: Searched) -> str:
    """The page with this table between its marks."""
    return put(page, "searching", table(found))


def read(path: Path) -> Searched:
    """What was measured before."""
    return from_plain(Searched, loads(path.read_text(), path.name, SCHEMA), path.name)


def show(found: Searched) -> None:
    """Puts it on the page."""
    PAGE.write_text(with_table(PAGE.read_text(), found))


if __name__ == "__main__":
    run(__doc__, "searching", SCHEMA, measure, show)
