"""`python -m benchmarks.sharding`: what a model costs whose tables lie on several ranks, and what that comes to on paper with a hundred.

Writes `benchmarks/results/sharding/<machine>.json` and the tables in `docs/sharding.md`.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fastrec.capture import capture
from fastrec.distributed.sharding import ShardPlan, Traffic, plan_shards, shard
from fastrec.measure import Machine, machine
from fastrec.plain import from_plain, loads
from fastrec.program import Program
from fastrec.techniques import Fuse, QuantizeTables
from fastrec.wording import amount, duration, times

from .marks import put
from .pages import ROOT, run

PAGE = ROOT / "docs" / "sharding.md"
SCHEMA = 1
WORLDS = (2, 4)
ROWS = 256
"""Rows of a rank's batch."""
HOT = 0.01
LEAST = 1 << 12
LIMIT = 300.0
"""Seconds that a rank is waited for."""
PROGRAMS = ("float32", "int8")

# What is assumed on paper, and nowhere measured.
NODES = 100
TABLES = 10e12
LINK = 25e9 / 8
ROUND_TRIP = 100e-6
CORES = 32


@dataclass(frozen=True)
class Row:
    """One plan, used: bytes a sample and rank as planned from training rows and as measured on test rows, the most of tables that a rank holds, and the median call."""

    program: str
    world: int
    place: str
    hot: float
    planned: float
    measured: float
    held: int
    forms: tuple[str, ...]
    calls: int
    p50: float


@dataclass(frozen=True)
class Alone:
    """The same batches in one process: the graph as it is, and with one rank of whom everything is asked, of no rows as well; medians of seconds."""

    program: str
    graph: float
    asked: float
    empty: float
    row_bytes: float
    reads: float


@dataclass(frozen=True)
class Sharding:
    """All plans, the same programs alone, what a call of no rows takes in each world, what plans for `NODES` ranks expect, and the machine."""

    machine: Machine
    rows: tuple[Row, ...]
    alone: tuple[Alone, ...]
    empty: Mapping[str, float]
    wide: Mapping[str, float]


def batches(split: str, count: int) -> list[tuple[Tensor, ...]]:
    """Real rows of the movietweetings, drawn, as the ranker takes them."""
    sys.path.insert(0, str(ROOT / "examples"))
    import films

    *inputs, _ = films.load()[0][split]
    chosen = torch.randint(len(inputs[0]), (count, ROWS), generator=torch.Generator().manual_seed(len(split)))
    return [tuple(x[rows] for x in inputs) for rows in chosen]


def program(name: str) -> Program:
    """The examples' ranker, untrained: what is looked up, and how much that is, does not depend on what is in its tables."""
    sys.path.insert(0, str(ROOT / "examples"))
    import films
    import movietweetings

    parts, sizes = films.load()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = movietweetings.Ranker(sizes).eval()
    made = capture(Program.read(model, tuple(x[:ROWS] for x in parts["valid"][:-1])))
    made = made.with_model(Fuse().apply(made).model)
    return made.with_model(QuantizeTables(least_bytes=0).apply(made).model) if name == "int8" else made


def measure(seconds: float, only: Sequence[str]) -> Sharding:
    """Every plan in groups of two and four processes; `seconds` for each."""
    names = [name for name in PROGRAMS if not only or any(word in name for word in only)]
    traffic = batches("train", 32)
    programs = {name: program(name) for name in names}
    alone = tuple(_alone(name, programs[name], traffic, seconds) for name in names)
    wide = {
        name: plan_shards(
            programs[name], NODES, traffic=traffic, least_bytes=LEAST, hot=HOT, place="rows"
        ).per_sample
        for name in names
    }
    rows: list[Row] = []
    empty: dict[str, float] = {}
    for world in WORLDS:
        # Where sums are not less for any lookup, both forms are one plan.
        plans: dict[bytes, tuple[str, str, float, ShardPlan]] = {}
        for name, place, hot, form in product(names, _PLACES, (0.0, HOT), _FORMS):
            plan = plan_shards(
                programs[name], world, traffic=traffic, least_bytes=LEAST, hot=hot, place=place, form=form
            )
            plans.setdefault(plan.digest, (name, place, hot, plan))
        jobs = [(name, plan.to_json()) for name, _, _, plan in plans.values()]
        slowest = max(one.asked for one in alone)
        # The same on every rank: all take part in every call.
        rounds = max(20, int(seconds / slowest / world))
        found = _in_ranks(world, jobs, rounds)
        empty[str(world)] = median(seconds for _, _, seconds in found)
        for number, (name, place, hot, plan) in enumerate(plans.values()):
            used = sum((traffic for _, one, _ in found for traffic in [one[number][0]]), Traffic())
            taken = [second for _, one, _ in found for second in one[number][1]]
            counts = used.calls * (world - 1) * plan.per_call
            forms = dict.fromkeys(form for table in plan.sharded for form in table.forms)
            rows.append(
                Row(
                    name, world, place, hot, plan.per_sample, (used.sent - counts) / used.samples,
                    max(plan.bytes_on(rank) for rank in range(world)), tuple(forms), used.calls // world, median(taken),
                )
            )  # fmt: skip
            print(rows[-1], flush=True)
    return Sharding(machine(), tuple(rows), alone, empty, wide)


_PLACES: tuple[Literal["table", "rows"], ...] = ("table", "rows")
_FORMS: tuple[Literal["rows", "best"], ...] = ("rows", "best")
_Job = tuple[str, str]
_Found = tuple[int, list[tuple[Traffic, list[float]]], float]


def _alone(name: str, made: Program, traffic: Sequence[tuple[Tensor, ...]], seconds: float) -> Alone:
    plan = plan_shards(made, 1, traffic=traffic, least_bytes=LEAST, hot=0, form="rows")
    reads = sum(table.reads for table in plan.sharded)
    row_bytes = sum(table.reads * table.row_bytes for table in plan.sharded) / reads
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = shard(made, plan)
        given = batches("test", 64)
        calls: dict[str, Callable[..., object]] = {"graph": made.model, "asked": model}
        taken: dict[str, list[float]] = {key: [] for key in calls}
        nothing: list[float] = []
        end = time.perf_counter() + seconds
        number = 0
        with torch.no_grad():
            while time.perf_counter() < end or number < 20:
                for key, call in calls.items():
                    start = time.perf_counter()
                    call(*given[number % len(given)])
                    taken[key].append(time.perf_counter() - start)
                start = time.perf_counter()
                model.take_part()
                nothing.append(time.perf_counter() - start)
                number += 1
        model.close()
    finally:
        dist.destroy_process_group()
    return Alone(name, median(taken["graph"]), median(taken["asked"]), median(nothing), row_bytes, reads)


def _in_ranks(world: int, jobs: Sequence[_Job], rounds: int) -> list[_Found]:
    """What each rank finds."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            processes.append(
                context.Process(
                    target=_rank,
                    args=(rank, world, str(Path(folder, "store")), jobs, rounds, theirs),
                    daemon=True,
                )
            )
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        found = []
        for process, pipe in zip(processes, pipes, strict=True):
            if not pipe.poll(LIMIT + rounds * len(jobs)):
                raise TimeoutError("a rank does not answer")
            found.append(pipe.recv())
            process.join(LIMIT)
    return found


def _rank(rank: int, world: int, store: str, jobs: Sequence[_Job], rounds: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=LIMIT)
    )
    programs = {name: program(name) for name in dict.fromkeys(name for name, _ in jobs)}
    given = batches("test", 64 * world)[rank::world]
    found = []
    nothing: list[float] = []
    for name, text in jobs:
        model = shard(programs[name], ShardPlan.from_json(text), timeout=LIMIT)
        for batch in given[:3]:
            model(*batch)
        before, taken = model.traffic, []
        for number in range(rounds):
            start = time.perf_counter()
            model(*given[number % len(given)])
            taken.append(time.perf_counter() - start)
        pairs = zip(vars(before).values(), vars(model.traffic).values(), strict=True)
        found.append((Traffic(*(new - old for old, new in pairs)), taken))
        for _ in range(rounds):
            start = time.perf_counter()
            model.take_part()
            nothing.append(time.perf_counter() - start)
        model.close()
    pipe.send((rank, found, median(nothing)))


def table(found: Sharding) -> str:
    """The page's table of plans."""
    lines = [
        f"{found.machine}", "",
        f"Batches of {ROWS} rows a rank; ranks are processes that share these cores. In one process a call takes "
        + " and ".join(f"{duration(one.graph)} ({one.program})" for one in found.alone)
        + ", and "
        + " and ".join(duration(one.asked) for one in found.alone)
        + " where one rank asks itself.", "",
        "| tables | ranks | held | hot rows | comes back as | bytes a sample, planned | measured | most on a rank | a call |",
        "|---|--:|---|--:|---|--:|--:|--:|--:|",
    ]  # fmt: skip
    for row in found.rows:
        where = "each on one rank" if row.place == "table" else "some rows on each"
        hot = f"{row.hot:.0%}" if row.hot else "none"
        lines.append(
            f"| {row.program} | {row.world} | {where} | {hot} | {' and '.join(row.forms)} | {row.planned:.0f} | {row.measured:.0f} | "
            f"{amount(row.held)} | {duration(row.p50)} |"
        )
    first = min(WORLDS)
    alone = median(one.empty for one in found.alone)
    lines += [
        "",
        f"A call of no rows takes {duration(alone)} with one rank, {duration(found.empty[str(first)])} with {first}",
    ]
    lines[-1] += "".join(f", {duration(found.empty[str(n)])} with {n}" for n in WORLDS if n != first) + "."
    return "\n".join(lines)


def paper(found: Sharding) -> str:
    """What the measured costs come to with `NODES` nodes and `TABLES` bytes of tables."""
    # A call of no rows is linear in the other ranks: three messages to each. Two ranks have a core each here, more wait for one another.
    fixed = median(one.empty for one in found.alone)
    each = max(0.0, found.empty["2"] - fixed)
    waiting = fixed + (NODES - 1) * each + 3 * ROUND_TRIP
    measured = (
        f"Measured: a call of no rows takes {duration(fixed)} and {duration(each)} for each other rank. With {NODES} ranks and three round trips of "
        f"{duration(ROUND_TRIP)}: {duration(waiting)}."
    )
    heads = (
        "tables", "rows", "each node holds", "a sample reads", "CPU a sample", "bytes a sample", "link a sample", f"a call of {ROWS} rows",
        "samples/s a core", "samples/s a node", "all nodes", "bound by",
    )  # fmt: skip
    lines = [measured, "", f"| {' | '.join(heads)} |", "|---" + "|--:" * (len(heads) - 2) + "|---|"]
    others = (NODES - 1) / NODES
    for one in found.alone:
        # Of tables so large no row is asked for twice in a batch, and none is hot: the most that can travel. Ids of so many rows
        # on a node take 8 bytes.
        count = TABLES / one.row_bytes
        id_bytes = 4 if count / NODES < 2**31 else 8
        travels = one.reads * (id_bytes + one.row_bytes) * others
        cpu, link = one.asked / ROWS, travels / LINK
        core, node = 1 / cpu, min(CORES / cpu, 1 / link)
        call = ROWS * (cpu + link) + waiting
        lines.append(
            f"| {one.program} | {count / 1e9:,.0f} billion of {one.row_bytes:.0f} bytes | {TABLES / NODES / 1e9:,.0f} GB | {one.reads:.1f} rows | "
            f"{duration(cpu)} | {travels:,.0f} | {duration(link)} | {duration(call)} | {core:,.0f} | {node:,.0f} | {node * NODES / 1e6:,.1f} million | "
            f"{'processors' if CORES / cpu < 1 / link else 'the link'} |"
        )
    seen = " and ".join(f"{value:,.0f} ({name})" for name, value in found.wide.items())
    saved = {
        one.program: one.reads * (4 + one.row_bytes) * others / found.wide[one.program] for one in found.alone
    }
    said = " and ".join(f"{times(value)} ({name})" for name, value in saved.items())
    lines += [
        "",
        f"With the tables and the rows of the table above, {NODES} ranks would send {seen} bytes a sample: repeated ids, hot rows and sums save {said}.",
    ]
    return "\n".join(lines)


def assumptions() -> str:
    """What is assumed on paper, in words."""
    return (
        f"{NODES} nodes with {TABLES / 1e12:.0f} TB of tables; {CORES} cores that each compute as fast as one here; a link of {LINK * 8 / 1e9:.0f} Gbit/s in both directions "
        f"at once, of which all can be used; {duration(ROUND_TRIP)} for a message and its answer."
    )


def with_table(page: str, found: Sharding) -> str:
    """The page with these tables between their marks."""
    page = put(page, "assumptions", assumptions())
    return put(put(page, "sharding", table(found)), "paper", paper(found))


def read(path: Path) -> Sharding:
    """What was measured before."""
    return from_plain(Sharding, loads(path.read_text(), path.name, SCHEMA), path.name)


def show(found: Sharding) -> None:
    """Puts it on the page."""
    PAGE.write_text(with_table(PAGE.read_text(), found))


if __name__ == "__main__":
    run(__doc__, "sharding", SCHEMA, measure, show)
