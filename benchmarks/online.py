"""`python -m benchmarks.online`: several requests in one call, in one process and behind Ray Serve under an open load.

Writes `benchmarks/results/online/<machine>.json` and the tables in `docs/serving.md`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastrec
from fastrec.compressed import CompressedModel
from fastrec.distributed.serve import deployment, served
from fastrec.measure import Machine, Ratio, interleaved, machine
from fastrec.packages import package
from fastrec.plain import from_plain, loads
from fastrec.serving import Merged
from fastrec.serving.ways import ONE_BY_ONE
from fastrec.wording import duration, spans, times

from .marks import put
from .models import CASES, Batch
from .pages import ROOT, run

PAGE = ROOT / "docs" / "serving.md"
SCHEMA = 1
MODELS = ("two_tower", "din", "sasrec_rows", "dcnv2")
REQUESTS, CANDIDATES = (2, 8, 32), (1, 10, 100)
LOADED = ("two_tower", "din")
SCORED = 200
SHARES = (0.25, 0.5, 0.75, 1.0)
TOGETHER, WAIT_MS, ROUNDS, FEWEST = 16, 2.0, 3, 300
_CLOSED = 200
WAYS = ("ragged", "whole batch", "original, whole batch")


@dataclass(frozen=True)
class Grid:
    """So many requests of so many candidates: the median one by one, and how many times faster each way is than that."""

    model: str
    requests: int
    candidates: int
    p50: float
    faster: Mapping[str, Ratio]


@dataclass(frozen=True)
class Load:
    """One server at one rate of requests per second, Poisson arrivals: `n` latencies in seconds from the intended time of sending."""

    model: str
    server: str
    rate: float
    n: int
    p50: float
    p99: float


@dataclass(frozen=True)
class Online:
    """Both tables, what serves each model, and the machine."""

    machine: Machine
    ways: Mapping[str, str]
    grid: tuple[Grid, ...]
    loads: tuple[Load, ...]


def measure(seconds: float, only: Sequence[str]) -> Online:
    """All models in one process, then those that are loaded behind servers."""
    grid: list[Grid] = []
    loads: list[Load] = []
    ways: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            if only and not any(word in name for word in only):
                continue
            fast = _compressed(name)
            merged = fast.merged()
            ways[name] = merged.way
            for row in _in_process(name, fast, merged, seconds):
                grid.append(row)
                print(row, flush=True)
            if name in LOADED:
                fast.save(Path(folder) / name)
                for load in _behind_servers(name, Path(folder) / name, merged.way, seconds):
                    loads.append(load)
                    print(load, flush=True)
    return Online(machine(), ways, tuple(grid), tuple(loads))


def _compressed(name: str) -> CompressedModel:
    case = CASES[name]
    batch = case.of_one_request().make_batch(64, torch.Generator().manual_seed(0))
    return fastrec.compress(
        case.build(),
        batch,
        request_features=case.request,
        batch_sizes=(1, 10, 100),
        seconds=40,
        progress=False,
    )


def _requests(name: str, count: int, candidates: int, seed: int) -> list[Batch]:
    """Requests of different users, their features given once."""
    case, rng = CASES[name].of_one_request(), torch.Generator().manual_seed(seed)
    return [case.given_once(case.make_batch(candidates, rng)) for _ in range(count)]


def together(model: Callable[..., Tensor], requests: Sequence[Any], once: Sequence[int]) -> list[Tensor]:
    """The model's answers, by one call: features number `once`, of one row, are repeated for every candidate."""
    sizes = [max(len(tensor) for tensor in request) for request in requests]
    parts = [
        [t.expand(size, *t.shape[1:]) if i in once else t for i, t in enumerate(request)]
        for request, size in zip(requests, sizes, strict=True)
    ]
    with torch.inference_mode():
        return [part.clone() for part in model(*map(torch.cat, zip(*parts, strict=True))).split(sizes)]


def _once(name: str) -> list[int]:
    request = CASES[name].request or {}
    return [index for index, axis in enumerate(CASES[name].axes) if request.get(axis) is True]


def _in_process(name: str, fast: CompressedModel, merged: Merged, seconds: float) -> Iterator[Grid]:
    ways = {ONE_BY_ONE: Merged(fast, way=ONE_BY_ONE)}
    for way in dict.fromkeys([merged.way, *(trial.session for trial in merged.trials)]):
        if way != ONE_BY_ONE:
            ways.setdefault(way.partition(",")[0], Merged(fast, way=way))
    calls: dict[str, Callable[[list[Batch]], object]] = {way: one.score_many for way, one in ways.items()}
    calls["original, whole batch"] = partial(together, CASES[name].build(), once=_once(name))
    for count in REQUESTS:
        for candidates in CANDIDATES:
            seen = interleaved(
                calls,
                lambda i, count=count, candidates=candidates: _requests(name, count, candidates, i),
                seconds=seconds,
                min_rounds=20,
                max_rounds=2000,
                warmup=3,
            )
            faster = {way: seen.ratio(ONE_BY_ONE, way) for way in calls if way != ONE_BY_ONE}
            yield Grid(name, count, candidates, seen.latency(ONE_BY_ONE).p50, faster)


def open_original(name: str) -> Callable[[Sequence[Any]], list[Any]]:
    """What scores the requests of the model as it is, in a replica's process."""
    return partial(together, CASES[name].build(), once=_once(name))


def _behind_servers(name: str, folder: Path, way: str, seconds: float) -> Iterator[Load]:
    """Every server at every rate, taking turns. Rates are shares of what the original's server can do."""
    ray, serve = package("ray", "ray", "benchmarks"), package("ray.serve", "ray", "benchmarks")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    quiet = {"enable_access_log": False}
    settings = {"max_batch_size": TOGETHER, "wait_ms": WAIT_MS, "threads": 1, "logging_config": quiet}
    # Together they have more replicas than cores: those that are not asked wait.
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False,
        logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
    try:
        serve.start(proxy_location="Disabled")
        apps = {
            "original": served(partial(open_original, name), **settings),
            "compressed": deployment(folder, merging={"way": way}, **settings),
            "compressed, one by one": deployment(folder, merging={"way": ONE_BY_ONE}, **settings),
        }
        handles = {
            server: serve.run(app, name=f"server-{place}", route_prefix=None)
            for place, (server, app) in enumerate(apps.items())
        }
        _, most = (
            asyncio.run(_capacity(name, handles["original"])) for _ in range(2)
        )  # the first calls are slow
        for share in SHARES:
            yield from asyncio.run(_rounds(name, handles, share * most, seconds))
    finally:
        serve.shutdown()
        ray.shutdown()


async def _capacity(name: str, handle: Any) -> float:
    """Requests a second that are answered while so many callers wait that every batch is full."""
    requests = iter(_requests(name, _CLOSED, SCORED, 7))

    async def caller() -> None:
        for request in requests:
            await _answered(handle, request)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(2 * TOGETHER)))
    return _CLOSED / (time.perf_counter() - began)


async def _rounds(name: str, handles: Mapping[str, Any], rate: float, seconds: float) -> list[Load]:
    latencies: dict[str, list[float]] = {server: [] for server in handles}
    count = max(FEWEST // ROUNDS, int(rate * seconds))
    for turn in range(ROUNDS):
        requests = _requests(name, count, SCORED, turn)
        for server, handle in handles.items():
            await open_loop(
                lambda request, handle=handle: _answered(handle, request), requests[:20], rate, seed=99
            )
            latencies[server] += await open_loop(
                lambda request, handle=handle: _answered(handle, request), requests, rate, seed=turn
            )
    return [
        Load(name, server, rate, len(found), *(float(np.quantile(found, q)) for q in (0.5, 0.99)))
        for server, found in latencies.items()
    ]


async def _answered(handle: Any, request: Batch) -> Any:
    return await handle.remote(request)


async def open_loop(
    send: Callable[[Any], Awaitable[Any]], requests: Sequence[Any], rate: float, seed: int
) -> list[float]:
    """Sends requests at times drawn beforehand, whatever became of those before; seconds from when each was to be sent
    until it was answered."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(requests))
    begin = time.perf_counter() + 0.05
    due = begin + np.cumsum(gaps)

    async def one(request: Any, at: float) -> float:
        await send(request)
        return time.perf_counter() - at

    waiting = []
    for request, at in zip(requests, due, strict=True):
        # Too late is sent at once: its wait counts.
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        waiting.append(asyncio.create_task(one(request, float(at))))
    return list(await asyncio.gather(*waiting))


def tables(found: Online) -> str:
    """Both tables."""
    lines = [
        f"{found.machine}",
        "",
        f"| model | requests | candidates of each | one by one | {' | '.join(WAYS)} |",
    ]
    lines.append("|---|--:|--:|--:|" + "--:|" * len(WAYS))
    for row in found.grid:
        cells = [
            f"{times(r.value)} ({spans(times(r.low), times(r.high))})" if (r := row.faster.get(way)) else ""
            for way in WAYS
        ]
        lines.append(
            f"| {row.model} | {row.requests} | {row.candidates} | {duration(row.p50)} | {' | '.join(cells)} |"
        )
    lines += ["", "| model | server | requests a second | n | p50 | p99 |", "|---|---|--:|--:|--:|--:|"]
    lines += [
        f"| {load.model} | {load.server}{f' ({found.ways[load.model]})' if load.server == 'compressed' else ''} | {load.rate:.0f} | "
        f"{load.n:,} | {duration(load.p50)} | {duration(load.p99)} |"
        for load in found.loads
    ]
    return "\n".join(lines)


def with_table(page: str, found: Online) -> str:
    """The page with these tables between its marks."""
    return put(page, "online", tables(found))


def read(path: Path) -> Online:
    """What was measured before."""
    return from_plain(Online, loads(path.read_text(), path.name, SCHEMA), path.name)


def show(found: Online) -> None:
    """Puts it on the page."""
    PAGE.write_text(with_table(PAGE.read_text(), found))


if __name__ == "__main__":
    run(__doc__, "online", SCHEMA, measure, show)
