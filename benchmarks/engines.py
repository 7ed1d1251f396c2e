"""Batches that plain processes, Ray Data and Spark hand to what scores them, and how many rows a second that was."""

from __future__ import annotations

import functools
import importlib.util
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import feather

BATCH = 1024
PART = 16 * BATCH
FEWEST = 64
WORKERS = (1, 2)
Engine = Callable[[pa.Table, Any, int], pd.DataFrame]
"""Scores a table with something, in so many workers: row, score, and when which process began and ended its batch."""


class Timed:
    """What scores, and when each batch of which process began and ended; made with a batch, it opens the model."""

    def __init__(self, scores: Callable[[Any], Any], first: Any = None) -> None:
        self.scores = scores
        if first is not None:
            scores(first)

    def __call__(self, batch: Any) -> Any:
        began = time.time()
        made = self.scores(batch)
        told = {"process": os.getpid(), "began": began, "ended": time.time()}
        if isinstance(made, pd.DataFrame):
            return made[["row", "score"]].assign(**told)
        columns = [made.column("row"), made.column("score")]
        columns += [pa.array(np.full(made.num_rows, value)) for value in told.values()]
        return type(made).from_arrays(columns, names=["row", "score", *told])

    def each(self, batches: Iterator[Any]) -> Iterator[Any]:
        return map(self, batches)


class Few(ValueError):
    """Too few batches began once all workers had opened the model."""


def rate(scored: pd.DataFrame, rows: int) -> float:
    """Rows a second from the second batch of each process on, all of them having begun. Raises `Few` where these are fewer than `FEWEST`."""
    assert sorted(scored["row"]) == list(range(rows))
    batches = (
        scored.groupby(["process", "began"]).agg(ended=("ended", "max"), rows=("row", "size")).reset_index()
    )
    first = batches.groupby("process")["ended"].min().max()
    later = batches[batches["began"] >= first]
    if len(later) < FEWEST:
        raise Few(
            f"{len(later)} of {len(batches)} batches began once all workers had opened the model, and {FEWEST} are the fewest"
        )
    return float(later["rows"].sum() / (later["ended"].max() - later["began"].min()))


def frames(table: pa.Table, scores: Any, workers: int) -> pd.DataFrame:
    """Processes of Python's own pool, each of which reads its parts of a file as data frames, whose cells are arrays."""
    return pooled(table, scores, workers, framed=True)


def plain(table: pa.Table, scores: Any, workers: int) -> pd.DataFrame:
    """Processes of Python's own pool, each of which maps its parts of a file as Arrow has them."""
    return pooled(table, scores, workers, framed=False)


def pooled(table: pa.Table, scores: Any, workers: int, framed: bool) -> pd.DataFrame:
    """What these processes give, all batches together."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        path = f"{scratch}/rows.feather"
        feather.write_feather(table, path, compression="uncompressed", chunksize=BATCH)
        score = functools.partial(part, path, Timed(scores), framed)
        begun = (score, context.Barrier(workers))
        with ProcessPoolExecutor(workers, mp_context=context, initializer=begin, initargs=begun) as pool:
            return pd.concat(pool.map(score, range(0, len(table), PART)))


def part(path: str, score: Timed, framed: bool, start: int) -> pd.DataFrame:
    """The scores of the part of a file that starts with this row."""
    batches = feather.read_table(path, memory_map=True).slice(start, PART).to_batches(BATCH)
    made = [score(x.to_pandas()) if framed else score(x).to_pandas() for x in batches]
    return pd.concat(made)


def begin(score: Callable[[int], object], barrier: Any) -> None:
    """Opens the model in a process, and waits until all have: opening takes seconds, more in one than in another."""
    torch.set_num_threads(1)
    score(0)
    barrier.wait()


def by_ray(table: pa.Table, scores: Any, workers: int) -> pd.DataFrame:
    """Actors of Ray Data."""
    import ray

    given = ray.data.from_arrow([table.slice(start, PART) for start in range(0, len(table), PART)])
    made = given.map_batches(
        Timed, fn_constructor_args=(scores, table[:BATCH]), batch_size=BATCH, batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
    )  # fmt: skip
    return made.to_pandas()


def by_spark(table: pa.Table, scores: Any, workers: int) -> pd.DataFrame:
    """Python processes of Spark, on this machine."""
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master(f"local[{workers}]").config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "4g")
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(BATCH)).getOrCreate()
    )  # fmt: skip
    try:
        # Otherwise there is a task for each batch, and starting tasks is most of what is measured.
        frame = session.createDataFrame(table).coalesce(4 * workers)
        types = "row long, score float, process long, began double, ended double"
        return frame.mapInArrow(Timed(scores).each, types).toPandas()
    finally:
        session.stop()


def engines() -> Iterator[tuple[str, Engine]]:
    """Those that are installed, each ready while it is the last that was given, and none runs beside another."""
    yield "processes, frames of pandas", frames
    yield "processes", plain
    if importlib.util.find_spec("ray") is not None:
        import ray

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        ray.init(address="local", num_cpus=max(WORKERS), include_dashboard=False, log_to_driver=False, object_store_memory=1 << 30)  # fmt: skip
        context = ray.data.DataContext.get_current()
        # All actors have opened the model before any is given a batch.
        context.enable_progress_bars, context.wait_for_min_actors_s = False, 300
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield "Ray Data", by_ray
        ray.shutdown()
    if importlib.util.find_spec("pyspark") is not None and shutil.which("java"):
        os.environ["PYSPARK_PYTHON"] = sys.executable
        yield "Spark", by_spark
