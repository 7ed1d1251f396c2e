"""The best 10 of an item matrix: fastrec.TopK beside scoring all, faiss and usearch, on one thread, taking turns.

    python -m benchmarks.retrieval [--items 100000 1000000] [--queries 1 16 256] [--graphs] [--seconds 20]

Items and queries are factors trained on real purchases, tiled with noise. Recall is the share of the exact best 10 (scores
in float64) over 1,000 users. `--graphs` builds HNSW graphs above 100,000 items too, which takes many minutes on one thread. `--cpu` counts the processor's
time of the process, not the clock's: on a machine shared with busy others, calls longer than a time slice wait for their turn.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from benchmarks.factors import tiled, trained
from benchmarks.marks import put
from benchmarks.turns import take_turns
from fastrec import TopK
from fastrec.measure import Latency, Machine, Ratio, machine
from fastrec.wording import duration, times

OURS, BASE, K, ASKED = "fastrec", "faiss flat", 10, 1000
RESULTS = Path(__file__).parent / "results" / "retrieval"
PAGE = Path(__file__).parent.parent / "docs" / "techniques" / "top-k.md"
Search = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """One way at one size: `speedup` is its median over fastrec's, `chosen` the way that fastrec measured as best."""

    items: int
    queries: int
    way: str
    latency: Latency
    speedup: Ratio
    recall: float | None
    equal: int | None
    seconds_to_build: float
    chosen: str = ""


@dataclass
class Run:
    machine: Machine
    versions: dict[str, str]
    clock: str
    asked: int = ASKED
    k: int = K
    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    reports: dict[str, str] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--graphs", action="store_true")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = ("torch", "numpy", "faiss-cpu", "usearch")
    run = Run(
        machine(),
        {name: metadata.version(name) for name in names},
        "processor time" if asked.cpu else "wall time",
    )
    out = asked.out or RESULTS / f"{run.machine.slug}.json"
    users, items = trained()
    users = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(2))]
    for count in asked.items:
        measure(run, users, tiled(items, count), asked)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(asdict(run), indent=1) + "\n")
        out.with_suffix(".md").write_text(markdown(run))
    PAGE.write_text(put(PAGE.read_text(), "retrieval", markdown(run)))
    print(markdown(run))


def measure(run: Run, users: Tensor, items: Tensor, asked: argparse.Namespace) -> None:
    """Adds all ways at this number of items, at each number of queries."""
    held_out, training = users[:ASKED], users[ASKED:]
    built: dict[str, tuple[Search, float]] = {}
    exact = best_of_all(items, held_out)
    index: TopK | None = None
    for name, build in makers(items, training, asked).items():
        if name in GRAPHS and len(items) > 100_000 and not asked.graphs:
            run.absent[f"{name}, {len(items):,} items"] = (
                "left out: its graph takes many minutes on one thread"
            )
            continue
        start = time.perf_counter()
        search, made = build()
        built[name] = search, time.perf_counter() - start
        if isinstance(made, TopK):
            run.reports[f"{name}, {len(items):,} items"] = str(made.report)
            index = made if name == OURS else index
        print(f"{len(items):,} items: {name} built in {built[name][1]:.1f} s", flush=True)
    for size in asked.queries:
        calls = {name: search for name, (search, _) in built.items() if size <= 16 or name not in SLOW}
        for name in built.keys() - calls.keys():
            run.absent[f"{name}, {len(items):,} items, {size:,} queries"] = "left out: slow"
        found = {
            name: torch.cat([search(part) for part in held_out.split(size)])
            for name, search in calls.items()
            if size == max(asked.queries) or name == OURS
        }
        generator = torch.Generator().manual_seed(3)

        def draw(size: int = size, generator: torch.Generator = generator) -> Tensor:
            return users[torch.randint(len(users), (size,), generator=generator)]

        samples = take_turns(
            calls,
            draw,
            seconds=asked.seconds,
            min_rounds=len(calls) if size == 1 else 4,
            clock=time.process_time_ns if asked.cpu else time.perf_counter_ns,
        )
        for name in calls:
            seconds, rows = built[name][1], found.get(name)
            timed = [t.way for t in index.report.timed if t.batch == size and t.serves] if index else []
            run.rows.append(
                Row(
                    len(items),
                    size,
                    name,
                    samples.latency(name),
                    samples.ratio(name, OURS),
                    None if rows is None else recall(exact, rows),
                    None if rows is None else int((rows.sort(1).values == exact.sort(1).values).all(1).sum()),
                    seconds,
                    timed[0] if timed and name == OURS else "",
                )
            )
            print(line(run.rows[-1]), flush=True)
    del built, index
    gc.collect()


SLOW = (f"{OURS}, pq prefilter", "numpy, all scores")
GRAPHS = ("faiss HNSW", "usearch HNSW")


def makers(
    items: Tensor, training: Tensor, asked: argparse.Namespace
) -> dict[str, Callable[[], tuple[Search, object]]]:
    """What builds each way to search, and what it holds."""
    import faiss
    from usearch.index import Index

    faiss.omp_set_num_threads(1)
    matrix = items.numpy()
    width = items.shape[1]

    def ours(**settings: object) -> tuple[Search, TopK]:
        index = TopK(items, queries=training, batches=asked.queries, k=K, **settings)  # type: ignore[arg-type]
        return lambda queries: index(queries, K)[1], index

    def in_torch() -> tuple[Search, None]:
        return lambda q: torch.cat([(p @ items.T).topk(K).indices for p in q.split(16)]), None

    def in_numpy() -> tuple[Search, None]:
        def search(queries: Tensor) -> Tensor:
            parts = []
            for part in queries.split(16):
                scores = part.numpy() @ matrix.T
                some = np.argpartition(scores, -K, axis=1)[:, -K:]
                order = np.argsort(-np.take_along_axis(scores, some, 1), axis=1)
                parts.append(torch.from_numpy(np.take_along_axis(some, order, 1)))
            return torch.cat(parts)

        return search, None

    def in_faiss(index: object, **settings: int) -> tuple[Search, object]:
        if not index.is_trained:  # type: ignore[attr-defined]
            index.train(matrix[:: max(1, len(matrix) // 50_000)])  # type: ignore[attr-defined]
        index.add(matrix)  # type: ignore[attr-defined]
        for name, value in settings.items():
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        return lambda q: torch.from_numpy(index.search(q.numpy(), K)[1]), index  # type: ignore[attr-defined]

    def in_usearch() -> tuple[Search, object]:
        index = Index(ndim=width, metric="ip", dtype="f32", connectivity=16, expansion_search=64)
        index.add(np.arange(len(matrix)), matrix, threads=1)

        def search(queries: Tensor) -> Tensor:
            keys = index.search(queries.numpy(), K, threads=1).keys
            return torch.from_numpy(np.asarray(keys).astype(np.int64).reshape(len(queries), -1))

        return search, index

    product = faiss.METRIC_INNER_PRODUCT
    lists = 512 if len(items) <= 100_000 else 2048
    return {
        OURS: ours,
        f"{OURS}, int8 prefilter": lambda: ours(prefilter="int8"),
        f"{OURS}, pq prefilter": lambda: ours(prefilter="pq", candidates=500),
        "torch, all scores": in_torch,
        "numpy, all scores": in_numpy,
        BASE: lambda: in_faiss(faiss.IndexFlatIP(width)),
        "faiss IVF": lambda: in_faiss(faiss.index_factory(width, f"IVF{lists},Flat", product), nprobe=32),
        "faiss HNSW": lambda: in_faiss(faiss.index_factory(width, "HNSW32", product), efSearch=64),
        "usearch HNSW": in_usearch,
    }


def best_of_all(items: Tensor, queries: Tensor) -> Tensor:
    """The rows of the best K (Q, K) by scores in float64."""
    scores, rows = torch.empty(len(queries), 0, dtype=torch.float64), torch.empty(len(queries), 0).long()
    wide = queries.double()
    for start in range(0, len(items), 20_000):
        best = (wide @ items[start : start + 20_000].double().T).topk(K)
        scores, rows = torch.cat([scores, best.values], 1), torch.cat([rows, best.indices + start], 1)
        best = scores.topk(K)
        scores, rows = best.values, rows.gather(1, best.indices)
    return rows


def recall(exact: Tensor, found: Tensor) -> float:
    return float((exact[:, :, None] == found[:, None, :]).any(2).float().mean())


def line(row: Row) -> str:
    found = "" if row.recall is None else f"{row.recall:.4f}"
    cells = [
        f"{row.items:,}",
        f"{row.queries:,}",
        row.way + (f" ({row.chosen})" if row.chosen else ""),
        duration(row.latency.p50),
        f"{times(row.speedup.value)} [{row.speedup.low:.2f} to {row.speedup.high:.2f}]",
        found,
        f"{row.latency.n:,}",
        f"{row.seconds_to_build:.1f} s",
    ]
    return "| " + " | ".join(cells) + " |"


def markdown(run: Run) -> str:
    """The table, and what stands behind it."""
    head = "| items | queries | way | median | fastrec is faster by | recall@10 | rounds | to build |"
    ours = [row for row in run.rows if row.way == OURS]
    equal = ", ".join(f"{row.equal:,} of {run.asked:,} at {row.items:,} x {row.queries:,}" for row in ours)
    parts = [
        (
            f"The best {run.k} of an item matrix of width 64, one thread, turns taken call by call; medians of {run.clock}, ratios with 95 % "
            "intervals. Factors trained on online retail by alternating least squares, tiled with noise of a tenth of their "
            f"length. Recall and equality with float64 over {run.asked:,} users."
        ),
        "\n".join([head, "|" + " ---: |" * 2 + " --- |" + " ---: |" * 5, *map(line, run.rows)]),
        f"fastrec's ten rows are those of all scores in float64 for: {equal}.",
        *(f"- {name}: {reason}" for name, reason in run.absent.items()),
        *(f"{name}:\n\n```\n{text}\n```" for name, text in run.reports.items()),
        f"Machine: {run.machine}; {', '.join(f'{name} {version}' for name, version in run.versions.items())}",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
