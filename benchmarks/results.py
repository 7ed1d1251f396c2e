"""What a run measures, as plain data: one `CaseResult` per case, merged over processes, kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import geometric_mean, median

import numpy as np

from fastrec.measure import Latency, Machine, Ratio
from fastrec.plain import dumps, from_plain, loads, to_plain

from .ceilings import Remaining
from .peers import BF16, FP32, PEERS

__all__ = ["ONCE", "OURS", "CaseResult", "Cell", "Means", "Overhead", "Prepared", "Results", "merge"]

SCHEMA = 1
OURS = "fastrec"
ONCE = "fastrec (given once)"
RESAMPLES = 2000


@dataclass(frozen=True)
class Prepared:
    """What came before the first timed call: seconds to prepare, seconds of the first calls (one at each size, where
    just-in-time compilers do their work), and the bytes by which the process grew."""

    seconds: float
    first_calls: float
    grown_bytes: int


@dataclass(frozen=True)
class Cell:
    """One case at one number of rows.

    `speedup[x]` is the median of `x` over the median of fastrec: above 1, fastrec is faster. `difference[x]` is the
    largest |score of x - score of eager| over one batch. `chosen` names the session fastrec serves this size with,
    `ceiling` the seconds that the program it came from takes at the least.
    """

    rows: int
    latency: Mapping[str, Latency]
    speedup: Mapping[str, Ratio]
    difference: Mapping[str, float]
    chosen: str
    load: float | None
    ceiling: float | None = None

    def best(self, peers: Sequence[str] = FP32) -> str | None:
        """The peer with the lowest median of these, eager included."""
        found = [name for name in peers if name in self.latency]
        return min(found, key=lambda name: self.latency[name].p50) if found else None


@dataclass(frozen=True)
class Overhead:
    """Seconds the wrapper adds to its session's own call: difference of medians, 95 % interval, n rounds."""

    rows: int
    seconds: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class CaseResult:
    """One case: how each way to serve it was prepared, which could not be and why, the timings, and the work left."""

    name: str
    note: str
    machine: Machine
    prepared: Mapping[str, Prepared]
    absent: Mapping[str, str]
    cells: tuple[Cell, ...]
    wrapper: tuple[Overhead, ...]
    resident_bytes: int
    processes: int = 1
    remaining: Remaining | None = None


@dataclass(frozen=True)
class Means:
    """Geometric means of fastrec's speed-up over eager and over the best peer, and over how many cells."""

    eager: float
    best: float
    cells: int


@dataclass(frozen=True)
class Results:
    """A whole run, by case name. `request`: every batch scored one request; `int8`, `bf16`: fastrec was allowed to round to it."""

    cases: Mapping[str, CaseResult] = field(default_factory=dict)
    request: bool = False
    int8: bool = False
    bf16: bool = False

    @property
    def rivals(self) -> tuple[str, ...]:
        """The peers that round no more coarsely than fastrec was allowed to."""
        return tuple(PEERS) if self.int8 else BF16 if self.bf16 else FP32

    @classmethod
    def read(cls, path: Path) -> Results:
        """The results in a file; none if there is no file."""
        if not path.exists():
            return cls()
        return from_plain(cls, loads(path.read_text(), path.name, SCHEMA), path.name)

    def write(self, path: Path) -> None:
        """Write the file whole, or leave the one before: a run that is killed keeps what it had."""
        text = dumps({"schema": SCHEMA, **to_plain(self, "results")}) + "\n"
        new = path.with_suffix(".part")
        new.write_text(text)
        new.replace(path)

    def means(self, cases: Sequence[str], sizes: Sequence[int]) -> Means | None:
        """Over these cases at these numbers of rows, as far as they were measured; None where none was."""
        eager, best = [], []
        for name in cases:
            for cell in self.cases[name].cells if name in self.cases else ():
                peer = cell.best(self.rivals)
                if cell.rows in sizes and peer in cell.speedup and "eager" in cell.speedup:
                    eager.append(cell.speedup["eager"].value)
                    best.append(cell.speedup[str(peer)].value)
        return Means(geometric_mean(eager), geometric_mean(best), len(eager)) if eager else None

    def with_case(self, case: CaseResult) -> Results:
        return replace(self, cases={**self.cases, case.name: case})


def merge(runs: Sequence[CaseResult]) -> CaseResult:
    """One result from several processes: medians over processes, intervals bootstrapped over processes.

    Fewer than three processes say nothing about how they scatter: intervals within one process are kept then, those
    of the first.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    cells = tuple(_merge_cells([run.cells[i] for run in runs]) for i in range(len(first.cells)))
    absent = {name: reason for run in runs for name, reason in run.absent.items()}
    return replace(first, cells=cells, absent=absent, processes=len(runs))


def _merge_cells(cells: Sequence[Cell]) -> Cell:
    common = [name for name in cells[0].latency if all(name in cell.latency for cell in cells)]
    return replace(
        cells[0],
        latency={name: _merge_latency([cell.latency[name] for cell in cells]) for name in common},
        speedup={
            name: _merge_ratio([cell.speedup[name] for cell in cells])
            for name in cells[0].speedup
            if name in common
        },
        difference={name: max(cell.difference[name] for cell in cells) for name in common},
        chosen=" / ".join(dict.fromkeys(cell.chosen for cell in cells)),
        ceiling=median(ceilings)
        if (ceilings := [c.ceiling for c in cells if c.ceiling is not None])
        else None,
    )


def _merge_latency(values: Sequence[Latency]) -> Latency:
    p50 = [value.p50 for value in values]
    p99 = [value.p99 for value in values if value.p99 is not None]
    low, high = _interval(p50) if len(p50) >= 3 else (values[0].low, values[0].high)
    return Latency(
        n=sum(value.n for value in values),
        p50=float(np.median(p50)),
        p95=float(np.median([value.p95 for value in values])),
        p99=float(np.median(p99)) if len(p99) == len(values) else None,
        low=low,
        high=high,
    )


def _merge_ratio(values: Sequence[Ratio]) -> Ratio:
    ratios = [value.value for value in values]
    low, high = _interval(ratios) if len(ratios) >= 3 else (values[0].low, values[0].high)
    return Ratio(float(np.median(ratios)), low, high, sum(value.n for value in values))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return float(low), float(high)
