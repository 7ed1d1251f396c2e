"""`python -m benchmarks.workers`: memory of many workers on one host, and rows a second that plain processes, Ray Data and Spark score.

Writes `benchmarks/results/workers/<machine>.json` and the two tables in `docs/scoring.md`. Engines that are not installed are left out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fastrec
from fastrec.distributed.batches import BatchScorer
from fastrec.measure import Machine, machine, resident_bytes
from fastrec.plain import from_plain, loads
from fastrec.wording import amount, share, times

from .marks import put
from .pages import ROOT, run

PAGE = ROOT / "docs" / "scoring.md"
SCHEMA = 1
BATCH = 1024
FEWEST = 64
WORKERS, HOLDERS = (1, 2), (1, 4)
ROWS, WIDTH = 1 << 23, 16
SIZES = Path("sizes.txt")


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
    compressed: float


@dataclass(frozen=True)
class Workers:
    """What was measured, and on which machine."""

    machine: Machine
    held: tuple[Held, ...]
    rates: tuple[Rate, ...]


class Lookup(nn.Module):
    """One large table and a tower."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH)
        self.tower = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.tower(self.table(ids)).squeeze(1)


def examples() -> Any:
    """The module of the example."""
    sys.path.insert(0, str(ROOT / "examples"))
    import movietweetings

    return movietweetings


def uncompressed(folder: str) -> nn.Module:
    """The model as it was trained, in evaluation mode."""
    sizes = Path(folder, SIZES)
    if sizes.exists():
        pairs = (line.split() for line in sizes.read_text().splitlines())
        model: nn.Module = examples().Ranker({name: int(size) for name, size in pairs})
    else:
        model = Lookup()
    model.load_state_dict(load_file(Path(folder, "model.safetensors")))
    return model.eval()


@functools.cache
def opened(folder: str) -> nn.Module:
    """The same, once for each process, however often what scores is pickled."""
    torch.set_num_threads(1)
    return uncompressed(folder)


class Original:
    """Batches scored by the uncompressed model, as somebody would write it: columns to tensors, a call, a column of scores."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        model = opened(self.folder)
        given = [torch.from_numpy(np.stack(list(batch[name]))) for name in ("ids", "genres", "liked")]
        with torch.inference_mode():
            return batch[["row"]].assign(score=model(*given).numpy())


class Timed:
    """What scores, and when each batch of which process began and ended."""

    def __init__(self, scores: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        self.scores = scores

    def __call__(self, batch: pd.DataFrame) -> pd.DataFrame:
        began = time.time()
        made = self.scores(batch)[["row", "score"]]
        return made.assign(process=os.getpid(), began=began, ended=time.time())

    def each(self, batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        return map(self, batches)


def rate(scored: pd.DataFrame, rows: int) -> float:
    """Rows a second from the second batch of each process on, all of them having begun. Raises `ValueError` where these are fewer than `FEWEST`."""
    assert sorted(scored["row"]) == list(range(rows))
    batches = (
        scored.groupby(["process", "began"]).agg(ended=("ended", "max"), rows=("row", "size")).reset_index()
    )
    first = batches.groupby("process")["ended"].min().max()
    later = batches[batches["began"] >= first]
    if len(later) < FEWEST:
        raise ValueError(
            f"{len(later)} of {len(batches)} batches began once all workers had opened the model, and {FEWEST} are the fewest: give more --seconds"
        )
    return float(later["rows"].sum() / (later["ended"].max() - later["began"].min()))


def plain(table: pd.DataFrame, scores: Any, workers: int) -> pd.DataFrame:
    """Processes of Python's own pool."""
    batches = [table[start : start + BATCH] for start in range(0, len(table), BATCH)]
    context = multiprocessing.get_context("spawn")
    given = (scores, batches[0], context.Barrier(workers))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=begin, initargs=given) as pool:
        return pd.concat(pool.map(Timed(scores), batches))


def begin(scores: Any, first: pd.DataFrame, barrier: Any) -> None:
    """Opens the model in a process, and waits until all have: opening takes seconds, more in one than in another."""
    torch.set_num_threads(1)
    scores(first)
    barrier.wait()


def by_ray(table: pd.DataFrame, scores: Any, workers: int) -> pd.DataFrame:
    """Actors of Ray Data."""
    import ray

    given = ray.data.from_pandas(
        [table[start : start + 16 * BATCH] for start in range(0, len(table), 16 * BATCH)]
    )
    made = given.map_batches(
        Timed, fn_constructor_args=(scores,), batch_size=BATCH, batch_format="pandas",
        compute=ray.data.ActorPoolStrategy(size=workers),
    )  # fmt: skip
    return made.to_pandas()


def by_spark(table: pd.DataFrame, scores: Any, workers: int) -> pd.DataFrame:
    """Python processes of Spark, on this machine."""
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master(f"local[{workers}]").config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "4g").config("spark.default.parallelism", str(4 * workers))
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(BATCH)).getOrCreate()
    )  # fmt: skip
    try:
        frame = session.createDataFrame(table)
        types = "row long, score float, process long, began double, ended double"
        return frame.mapInPandas(Timed(scores).each, types).toPandas()
    finally:
        session.stop()


@contextlib.contextmanager
def engines() -> Iterator[dict[str, Callable[[pd.DataFrame, Any, int], pd.DataFrame]]]:
    """Those that are installed, ready."""
    found = {"processes": plain}
    if importlib.util.find_spec("ray") is not None:
        import ray

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(address="local", num_cpus=max(WORKERS), include_dashboard=False, log_to_driver=False, object_store_memory=1 << 30)  # fmt: skip
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        found["Ray Data"] = by_ray
    if importlib.util.find_spec("pyspark") is not None and shutil.which("java"):
        os.environ["PYSPARK_PYTHON"] = sys.executable
        found["Spark"] = by_spark
    try:
        yield found
    finally:
        if "Ray Data" in found:
            ray.shutdown()


def hold(pipe: Connection, folder: str, artifact: bool) -> None:
    """Loads a model, reads every row of its tables, and says what this process has to itself of it, libraries included, while all others hold theirs."""
    torch.set_num_threads(1)
    before = resident_bytes()
    model: Any = fastrec.load(Path(folder, "artifact")) if artifact else uncompressed(folder)
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


def trained(folder: Path) -> tuple[str, pd.DataFrame]:
    """The folder of the trained model, uncompressed and saved, and the rows to score."""
    data = examples()
    model, parts = data.trained()
    *inputs, _ = parts["test"]
    *known, _ = parts["train"]
    sizes = data.load()[1]
    names = ("users", "films", "years", "genres")
    (folder / SIZES).write_text("".join(f"{name} {sizes[name]}\n" for name in names))
    _keep(folder, model, tuple(x[:256] for x in inputs), [tuple(x[:512] for x in known)])
    columns = zip(("ids", "genres", "liked"), inputs, strict=True)
    return str(folder), pd.DataFrame({name: list(x.numpy()) for name, x in columns})


def large(folder: Path) -> str:
    """The folder of the model with the large table, uncompressed and saved."""
    torch.manual_seed(0)
    _keep(folder, Lookup().eval(), (torch.randint(ROWS, (256,)),), [(torch.randint(ROWS, (512,)),)])
    return str(folder)


def _keep(
    home: Path, model: nn.Module, batch: tuple[Tensor, ...], calibration: Sequence[tuple[Tensor, ...]]
) -> None:
    save_file(model.state_dict(), home / "model.safetensors")
    fast = fastrec.compress(model, batch, calibration=calibration, batch_sizes=(BATCH,), progress=False)
    fast.save(home / "artifact")


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


def _rates(table: pd.DataFrame, home: str, seconds: float) -> Iterator[Rate]:
    """Rounds in which both models take turns, long enough that a worker scores for these seconds."""
    ways: Mapping[str, Any] = {
        "uncompressed": Original(home),
        "compressed": BatchScorer(str(Path(home, "artifact"))),
    }
    # So many rows that the slower one takes about as long.
    once = _numbered(table, 2 * FEWEST * BATCH)
    rows = int(max(32, seconds * rate(plain(once, ways["uncompressed"], 1), len(once)) // BATCH)) * BATCH
    given = _numbered(table, rows)
    with engines() as found:
        for engine, score in found.items():
            for workers in WORKERS:
                seen: dict[str, list[float]] = {name: [] for name in ways}
                for turn in range(3):
                    for name in list(ways)[:: 1 if turn % 2 else -1]:
                        seen[name].append(rate(score(given, ways[name], workers), rows))
                one = Rate(engine, workers, rows, *(float(np.median(seen[name])) for name in ways))
                print(one, flush=True)
                yield one


def _numbered(table: pd.DataFrame, rows: int) -> pd.DataFrame:
    """So many rows, from the first again where there are fewer."""
    return table.iloc[np.arange(rows) % len(table)].reset_index(drop=True).assign(row=np.arange(rows))


def memory(found: Workers) -> str:
    """The page's first table."""
    lines = [f"{found.machine}", "", "| tables | workers | uncompressed, all together | fastrec | of it |", "|--:|--:|--:|--:|--:|"]  # fmt: skip
    lines += [
        f"| {amount(one.tables)} | {one.workers} | {amount(one.uncompressed)} | {amount(one.compressed)} | {share(one.compressed / one.uncompressed)} |"
        for one in found.held
    ]
    return "\n".join(lines)


def rows_a_second(found: Workers) -> str:
    """The page's second table."""
    lines = [f"{found.machine}", "", "| engine | workers | rows | uncompressed, rows/s | fastrec, rows/s | faster |", "|---|--:|--:|--:|--:|--:|"]  # fmt: skip
    lines += [
        f"| {one.engine} | {one.workers} | {one.rows:,} | {one.uncompressed:,.0f} | {one.compressed:,.0f} | {times(one.compressed / one.uncompressed)} |"
        for one in found.rates
    ]
    return "\n".join(lines)


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
