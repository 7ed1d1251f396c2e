"""`python -m benchmarks.workers`: memory of many workers on one host, and rows a second that plain processes, Ray Data and Spark score.

Writes `benchmarks/results/workers/<machine>.json` and the two tables in `docs/scoring.md`. Engines that are not installed are left out.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fastrec
from fastrec.distributed.batches import BatchScorer
from fastrec.measure import Machine, evaluator, machine, resident_bytes
from fastrec.plain import from_plain, loads
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables
from fastrec.wording import amount, times

from .engines import BATCH, FEWEST, WORKERS, Engine, Few, engines, plain, rate
from .marks import put
from .originals import COLUMNS, ROWS, SIZES, WIDTH, Lookup, Original, examples, uncompressed
from .pages import ROOT, run

PAGE = ROOT / "docs" / "scoring.md"
SCHEMA = 1
HOLDERS = (1, 4)


@dataclass(frozen=True)
class Held:
    """Bytes that all of these workers have to themselves of one model, every row of its table read. Pages that one process alone has mapped are its own."""

    workers: int
    tables: int
    uncompressed: int
    compressed: int


@dataclass(frozen=True)
class Rate:
    """Rows a second of all workers together, in one engine: medians of the rounds."""

    engine: str
    workers: int
    rows: int
    uncompressed: float
    exact: float
    int8: float


@dataclass(frozen=True)
class Workers:
    """What was measured, and on which machine."""

    machine: Machine
    held: tuple[Held, ...]
    rates: tuple[Rate, ...]


def hold(pipe: Connection, folder: str, artifact: bool) -> None:
    """Loads a model, reads every row of its tables, and says what this process has to itself of it, libraries included, while all others hold theirs."""
    torch.set_num_threads(1)
    before = resident_bytes()
    model: Any = fastrec.load(Path(folder, "exact")) if artifact else uncompressed(folder)
    with torch.inference_mode():
        for ids in torch.arange(ROWS).split(4096):
            model(ids)
    pipe.send("held")
    pipe.recv()
    pipe.send(resident_bytes() - before)
    pipe.recv()


def held_by(folder: str, artifact: bool, workers: int) -> int:
    """The bytes that these workers have to themselves, together."""
    context = multiprocessing.get_context("spawn")
    pipes, started = [], []
    for _ in range(workers):
        mine, theirs = context.Pipe()
        started.append(context.Process(target=hold, args=(theirs, folder, artifact)))
        started[-1].start()
        pipes.append(mine)
    for pipe in pipes:
        assert pipe.recv() == "held"
    for pipe in pipes:
        pipe.send("count")
    found = sum(pipe.recv() for pipe in pipes)
    for pipe in pipes:
        pipe.send("end")
    for one in started:
        one.join()
    return int(found)


def trained(folder: Path) -> tuple[str, pa.Table]:
    """The folder of the trained model, uncompressed and saved, and the rows to score."""
    data = examples()
    model, parts = data.trained()
    *inputs, _ = parts["test"]
    *known, _ = parts["train"]
    *held, labels = parts["valid"]
    sizes = data.load()[1]
    names = ("users", "films", "years", "genres")
    (folder / SIZES).write_text("".join(f"{name} {sizes[name]}\n" for name in names))
    chosen = torch.randperm(len(known[0]), generator=torch.Generator().manual_seed(0))[:4096].split(256)
    within = {
        "recipe": [Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()],
        "evaluate": evaluator(zip(*(x.split(1000) for x in held), strict=True), labels, ["auc"]),
        "budget": fastrec.Budget({"auc": 0.0002}),
    }
    batch, calibration = (
        tuple(x[:256] for x in inputs),
        [tuple(x[rows] for x in known) for rows in chosen],
    )
    _keep(folder, model, batch, calibration, {"exact": {}, "int8": within})
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(x.numpy().reshape(-1)), x.shape[1]) for x in inputs]
    return str(folder), pa.table(columns, names=list(COLUMNS))


def large(folder: Path) -> str:
    """The folder of the model with the large table, uncompressed and saved."""
    torch.manual_seed(0)
    batch, calibration = (torch.randint(ROWS, (256,)),), [(torch.randint(ROWS, (512,)),)]
    _keep(folder, Lookup().eval(), batch, calibration, {"exact": {}})
    return str(folder)


def _keep(
    home: Path,
    model: nn.Module,
    batch: tuple[Tensor, ...],
    calibration: Sequence[tuple[Tensor, ...]],
    forms: Mapping[str, Mapping[str, Any]],
) -> None:
    """Saves the model, and what it is compressed to in each form."""
    save_file(model.state_dict(), home / "model.safetensors")
    for name, options in forms.items():
        fast = fastrec.compress(
            model, batch, calibration=calibration, batch_sizes=(BATCH,), progress=False, **options
        )
        print(f"{name}: {fast.report.headline}", *fast.report.accuracy, flush=True)
        fast.save(home / name)


def measure(seconds: float, only: Sequence[str]) -> Workers:
    """Memory of workers with a large table, and rows of a trained model in every engine."""
    held: list[Held] = []
    rates: list[Rate] = []
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        if not only or "memory" in only:
            home = large(Path(first))
            for workers in HOLDERS:
                held.append(
                    Held(workers, ROWS * WIDTH * 4, *(held_by(home, one, workers) for one in (False, True)))
                )
                print(held[-1], flush=True)
        if not only or "rows" in only:
            home, table = trained(Path(second))
            rates += _rates(table, home, seconds)
    return Workers(machine(), tuple(held), tuple(rates))


def _rates(table: pa.Table, home: str, seconds: float) -> Iterator[Rate]:
    """All of them in every engine, of so many rows that the uncompressed model takes about these seconds with one worker."""
    ways: Mapping[str, Any] = {
        "uncompressed": Original(home),
    } | {name: BatchScorer(str(Path(home, name)), keep=["row"]) for name in ("exact", "int8")}
    once = _numbered(table, 4 * FEWEST * BATCH)
    batches = int(seconds * rate(plain(once, ways["uncompressed"], 1), len(once)) // BATCH)
    rows = max(4 * FEWEST, batches) * BATCH
    for engine, score in engines():
        for workers in WORKERS:
            one = _rate(engine, score, table, ways, workers, rows)
            print(one, flush=True)
            yield one


def _rate(
    engine: str,
    score: Engine,
    table: pa.Table,
    ways: Mapping[str, Any],
    workers: int,
    rows: int,
) -> Rate:
    """Rounds in which they take turns in one engine; of twice as many rows where these were too few."""
    while True:
        given, seen = _numbered(table, rows), {name: list[float]() for name in ways}
        try:
            for turn in range(3):
                for name in list(ways)[:: 1 if turn % 2 else -1]:
                    seen[name].append(rate(score(given, ways[name], workers), rows))
        except Few as error:
            print(f"{engine}, {workers}: {error}; twice as many rows", flush=True)
            rows *= 2
            continue
        return Rate(engine, workers, rows, *(float(np.median(seen[name])) for name in ways))


def _numbered(table: pa.Table, rows: int) -> pa.Table:
    """So many rows, from the first again where there are fewer."""
    taken = table.take(pa.array(np.arange(rows) % len(table)))
    return taken.append_column("row", pa.array(np.arange(rows))).combine_chunks()


def memory(found: Workers) -> str:
    """The page's first table."""
    lines = [f"{found.machine}", "", "| tables | workers | uncompressed, all together | fastrec | of it |", "|--:|--:|--:|--:|--:|"]  # fmt: skip
    lines += [
        f"| {amount(one.tables)} | {one.workers} | {amount(one.uncompressed)} | {amount(one.compressed)} | {one.compressed / one.uncompressed:.0%} |"
        for one in found.held
    ]
    return "\n".join(lines)


def rows_a_second(found: Workers) -> str:
    """The page's second table."""
    lines = [f"{found.machine}", "", "| engine | workers | rows | uncompressed, rows/s | exact, rows/s | faster | int8, rows/s | faster |", "|---|--:|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    lines += [
        f"| {one.engine} | {one.workers} | {one.rows:,} | {one.uncompressed:,.0f} | {_beside(one.exact, one)} | {_beside(one.int8, one)} |"
        for one in found.rates
    ]
    return "\n".join(lines)


def _beside(rows: float, one: Rate) -> str:
    return f"{rows:,.0f} | {times(rows / one.uncompressed)}"


def with_table(page: str, found: Workers) -> str:
    """The page with both tables between their marks."""
    return put(put(page, "workers", memory(found)), "batches", rows_a_second(found))


def read(path: Path) -> Workers:
    """What was measured before."""
    return from_plain(Workers, loads(path.read_text(), path.name, SCHEMA), path.name)


def show(found: Workers) -> None:
    """Puts it on the page."""
    PAGE.write_text(with_table(PAGE.read_text(), found))


if __name__ == "__main__":
    run(__doc__, "workers", SCHEMA, measure, show)
