"""One case in one process: everything prepared, then timed turn by turn on the same fresh inputs."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastrec.capture import capture
from fastrec.measure import Samples, machine, resident_bytes
from fastrec.program import Program

from . import ours
from .ceilings import Remaining, ceiling, measure_rates, remaining
from .models import Batch, Case
from .peers import PEERS, Call, Peer, Work
from .results import ONCE, OURS, CaseResult, Cell, Overhead, Prepared
from .turns import take_turns

__all__ = ["measure_case"]

EXAMPLE_ROWS, CALIBRATION_BATCHES = 8, 32
WARM_CALLS = 2
MIN_ROUNDS, MIN_ROUNDS_SLOW, SLOW = 36, 18, 0.5  # rounds; a round slower than SLOW seconds gets fewer of them
WRAPPER_ROWS = (1, 100)
LEFT_OUT = "left out of this run"
BARE = "bare"
GIVEN_ONCE = (ONCE, BARE)  # what takes one row of the request's features; the others take them repeated


@dataclass
class _Bench:
    """The case being measured, and what is known of it so far."""

    case: Case
    sizes: Sequence[int]
    seconds: float
    seed: int
    say: Callable[[str], None]
    calls: dict[str, Call] = field(default_factory=dict)
    prepared: dict[str, Prepared] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def generator(self, stream: int) -> torch.Generator:
        """A random stream of this process and purpose."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + stream)

    def inputs(self, rows: int, stream: int) -> Callable[[], Batch]:
        """Fresh batches, one per call."""
        generator = self.generator(stream)
        return lambda: self.case.make_batch(rows, generator)

    def fed(self, name: str, batch: Batch) -> Batch:
        """The batch in the form in which this way takes it."""
        return self.case.given_once(batch) if name in GIVEN_ONCE else batch

    def turns(
        self, calls: Mapping[str, Call], make: Callable[[], Batch], seconds: float, rounds: int
    ) -> Samples:
        """Time `calls`, each on its form of the same batches, which is made outside the timing."""

        def forms() -> dict[bool, Batch]:
            batch = make()
            return {False: batch, True: self.case.given_once(batch)}

        def taking(call: Call, once: bool) -> Callable[[dict[bool, Batch]], object]:
            return lambda forms: call(forms[once])

        fed = {name: taking(call, name in GIVEN_ONCE) for name, call in calls.items()}
        return take_turns(fed, forms, seconds=seconds, min_rounds=rounds)

    def prepare(self, name: str, build: Callable[[], Call]) -> None:
        """Build one way to serve and call it at every size; what fails is listed with its reason."""
        before, start = resident_bytes(), time.perf_counter()
        try:
            call = build()
            built = time.perf_counter()
            for rows in self.sizes:
                make = self.inputs(rows, 1)
                for _ in range(WARM_CALLS):
                    call(self.fed(name, make()))
        except Exception as error:
            self.absent[name] = _reason(error)
            self.say(f"  {name}: cannot run: {self.absent[name]}")
            return
        end = time.perf_counter()
        self.calls[name] = call
        self.prepared[name] = Prepared(built - start, end - built, resident_bytes() - before)
        self.say(f"  {name}: prepared in {built - start:.1f} s, first calls {end - built:.1f} s")

    def differences(self, rows: int) -> dict[str, float]:
        """Largest |score - score of eager| of each call over one batch; a call of another shape is struck off."""
        batch = self.case.make_batch(rows, self.generator(2))
        expected = self.calls["eager"](batch)
        found = {}
        for name, call in list(self.calls.items()):
            got = call(self.fed(name, batch))
            delta = float((got - expected).abs().max()) if got.shape == expected.shape else float("nan")
            if np.isfinite(delta):
                found[name] = delta
            else:
                del self.calls[name]
                self.absent[name] = f"wrong at N={rows}: {_short(got)} instead of {_short(expected)}"
                self.say(f"  {name}: {self.absent[name]}")
        return found

    def cell(self, rows: int, chosen: str) -> Cell:
        """Time every call at this number of rows."""
        difference = self.differences(rows)
        make = self.inputs(rows, 10 + rows)
        start = time.perf_counter()
        for name, call in self.calls.items():
            call(self.fed(name, make()))
        slow = time.perf_counter() - start > SLOW
        samples = self.turns(self.calls, make, self.seconds, MIN_ROUNDS_SLOW if slow else MIN_ROUNDS)
        latency = {name: samples.latency(name) for name in self.calls}
        speedup = {
            name: samples.ratio(name, OURS) for name in self.calls if OURS in self.calls and name != OURS
        }
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        times = "  ".join(f"{name} {value.p50 * 1e3:.3f}" for name, value in latency.items())
        self.say(f"  N={rows} ({samples.rounds} rounds), ms: {times}")
        return Cell(rows, latency, speedup, difference, chosen, load)


def measure_case(
    case: Case,
    *,
    sizes: Sequence[int],
    peers: Sequence[str],
    fastrec: bool,
    seconds: float,
    seed: int,
    say: Callable[[str], None],
    request: bool = False,
    int8: bool = False,
    bf16: bool = False,
) -> CaseResult:
    """Prepare `peers` and fastrec on one case, and time them together for `seconds` at each of `sizes`.

    With `request`, every batch scores one request: all get its features repeated for each candidate, and fastrec,
    which is told which they are, also gets them once. With `int8` or `bf16` fastrec may round. Torch is set to one thread: call this in a process of its own.
    """
    torch.set_num_threads(1)
    case = case.of_one_request() if request else replace(case, request=None)
    names = ["eager", *(name for name in peers if name != "eager")]  # the others are compared with eager
    with tempfile.TemporaryDirectory() as folder:
        # Compiled code of an earlier run would make the seconds to prepare look like nothing.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder + "/inductor"
        bench = _Bench(case, sizes, seconds, seed, say)
        calibration = [
            case.make_batch(EXAMPLE_ROWS, generator)
            for generator in [bench.generator(0)]
            for _ in range(CALIBRATION_BATCHES)
        ]
        work = Work(case, calibration, Path(folder))
        bench.absent.update({name: LEFT_OUT for name in PEERS if name not in names})
        for name in names:
            peer = PEERS[name]
            if reason := peer.missing():
                bench.absent[name] = reason
                say(f"  {name}: {reason}")
            else:
                bench.prepare(name, _builder(peer, work))
        served: list[ours.Served] = []
        if fastrec:
            bench.prepare(OURS, lambda: _ours(work, sizes, int8, bf16, served))
            if case.request and OURS in bench.calls:
                bench.prepare(ONCE, lambda: served[0].call)
        else:
            bench.absent[OURS] = LEFT_OUT
        chosen = served[0].chosen if served else {}
        cells = tuple(bench.cell(rows, chosen.get(rows, "")) for rows in sizes)
        timed = [rows for rows in WRAPPER_ROWS if rows in sizes and OURS in bench.calls]
        wrapper = tuple(_overhead(bench, served[0], rows) for rows in timed)
        resident, left = resident_bytes(), None
        if OURS in bench.calls:
            cells, left = _bounded(work, served[0], cells)
            say(f"  multiply-adds per candidate: {left.before:,.0f}, in what serves {left.after:,.0f}")
        return CaseResult(
            name=case.name,
            note=case.note,
            machine=machine(),
            prepared=bench.prepared,
            absent=bench.absent,
            cells=cells,
            wrapper=wrapper,
            resident_bytes=resident,
            remaining=left,
        )


def _builder(peer: Peer, work: Work) -> Callable[[], Call]:
    return lambda: peer.prepare(work)


def _ours(work: Work, sizes: Sequence[int], int8: bool, bf16: bool, served: list[ours.Served]) -> Call:
    served.append(ours.prepare(work, sizes, int8, bf16))
    return served[0].call


def _bounded(work: Work, served: ours.Served, cells: Sequence[Cell]) -> tuple[tuple[Cell, ...], Remaining]:
    """The cells with the least that each could take, and the work that remains of the model."""
    before = capture(Program.read(work.original, work.example))
    after, rates = served.program or before, measure_rates()
    bounded = tuple(replace(cell, ceiling=ceiling(after, cell.rows, rates)) for cell in cells)
    return bounded, remaining(before, after, rates)


def _overhead(bench: _Bench, served: ours.Served, rows: int) -> Overhead:
    """What the wrapper adds to its session, by turns on the same inputs."""
    calls = {"wrapped": served.call, BARE: served.bare[rows]}
    samples = bench.turns(calls, bench.inputs(rows, 10_000 + rows), bench.seconds / 2, MIN_ROUNDS)
    wrapped, bare = samples.seconds["wrapped"], samples.seconds[BARE]
    draws = np.random.default_rng(0).integers(0, len(bare), (2000, len(bare)))
    low, high = np.quantile(
        np.median(wrapped[draws], axis=1) - np.median(bare[draws], axis=1), (0.025, 0.975)
    )
    value = float(np.median(wrapped) - np.median(bare))
    bench.say(f"  wrapper at N={rows}: {value * 1e6:.1f} us ({low * 1e6:.1f} to {high * 1e6:.1f})")
    return Overhead(rows, value, float(low), float(high), samples.rounds)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)
    return f"{type(error).__name__}: {text[:300]}{'…' if len(text) > 300 else ''}"


def _short(scores: Tensor) -> str:
    finite = "finite" if bool(torch.isfinite(scores).all()) else "not finite"
    return f"{tuple(scores.shape)} {finite}"
