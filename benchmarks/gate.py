"""How often the gate of `fastrec.measure.gate` is wrong: equal code, and code that does a tenth more, in fresh processes.

    python -m benchmarks.gate [--repeats 20] [--seconds 10]

Two kinds of call: a loop of plain Python (about 0.2 ms) and a torch ranker of twenty equal layers (about 1 ms). "same" compares
it with a copy of its own; "a tenth more" does a tenth of the work once more: sixty-six rounds of the loop for sixty, two more layers
(with weights of their own: those of layers just computed would be warm).
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.marks import put
from fastrec.measure import Machine, machine
from fastrec.measure.gate import Gate, Verdict, compare
from fastrec.plain import dumps, from_plain, loads, to_plain

RESULTS = Path(__file__).parent / "results" / "gate"
PAGE = Path(__file__).parent.parent / "docs" / "ci.md"
SCHEMA = 1
EXPECTED: dict[str, Verdict] = {"same": "passed", "a tenth more": "regression"}


@dataclass(frozen=True)
class One:
    """One run of the gate in a process of its own, `repeat` its number."""

    call: str
    change: str
    repeat: int
    gate: Gate
    load: float | None


@dataclass(frozen=True)
class Run:
    """Every run, and the machine."""

    machine: Machine
    margin: float
    seconds: float
    runs: tuple[One, ...]


class Layers(nn.Module):
    """A table and twenty equal layers, and `more` whose answers nobody reads."""

    def __init__(self, more: int = 0) -> None:
        super().__init__()
        self.table = nn.Embedding(20_000, 128)
        self.layers = nn.ModuleList(nn.Linear(128, 128) for _ in range(20))
        self.more = nn.ModuleList(nn.Linear(128, 128) for _ in range(more))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for layer in self.layers:
            x = torch.relu(layer(x))
        y = x
        for layer in self.more:
            y = torch.relu(layer(y))
        return x


def loop(rounds: int) -> Callable[[int], float]:
    def call(seed: int) -> float:
        value = float(seed)
        for _ in range(rounds):
            for _ in range(200):
                value = value * 0.5 + 1.0
        return value

    return call


def cases(repeat: int) -> dict[str, tuple[Any, dict[str, Any], Callable[[int], Any]]]:
    """For each kind of call the reference, its candidates by change, and the inputs."""
    torch.manual_seed(repeat)
    model = Layers().eval()
    longer = Layers(2).eval()
    longer.load_state_dict(model.state_dict(), strict=False)

    def served(model: nn.Module) -> Callable[[Tensor], Tensor]:
        def call(ids: Tensor) -> Tensor:
            with torch.inference_mode():
                return model(ids)

        return call

    rng = torch.Generator().manual_seed(repeat)
    return {
        "loop": (loop(60), {"same": loop(60), "a tenth more": loop(66)}, lambda i: i),
        "torch": (
            served(model),
            {"same": served(copy.deepcopy(model)), "a tenth more": served(longer)},
            lambda i: torch.randint(20_000, (64,), generator=rng),
        ),
    }


def once(repeat: int, margin: float, seconds: float) -> Run:
    """Every case once, here."""
    torch.set_num_threads(1)
    found = []
    for name, (reference, candidates, inputs) in cases(repeat).items():
        for change, candidate in candidates.items():
            gate = compare(reference, candidate, inputs, margin=margin, seconds=seconds)
            found.append(One(name, change, repeat, gate, machine().load))
    return Run(machine(), margin, seconds, tuple(found))


def written(run: Run) -> dict[str, Any]:
    return {"schema": SCHEMA} | to_plain(run, "run")  # type: ignore[no-any-return]  # a dataclass is a dict of its fields


def read(path: Path) -> Run:
    return from_plain(Run, loads(path.read_text(), path.name, SCHEMA), path.name)


def table(run: Run) -> str:
    """What was found, for the page."""
    lines = [
        "| call | candidate | runs | right | wrong | inconclusive | ratio, lowest to highest | control, furthest | rounds, median |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for name, change in dict.fromkeys((one.call, one.change) for one in run.runs):
        gates = [one.gate for one in run.runs if (one.call, one.change) == (name, change)]
        verdicts = [gate.verdict for gate in gates]
        right, unsure = verdicts.count(EXPECTED[change]), verdicts.count("inconclusive")
        values = [gate.ratio.value for gate in gates]
        furthest = max((gate.control.value for gate in gates), key=lambda value: abs(np.log(value)))
        time = median(gate.reference.p50 for gate in gates) * 1e3
        lines.append(
            f"| {name}, {time:.2f} ms | {change} | {len(gates)} | {right} | {len(gates) - right - unsure} | {unsure} "
            f"| {min(values):.3f} to {max(values):.3f} | {furthest:.3f} | {median(gate.ratio.n for gate in gates):.0f} |"
        )
    loads_ = [one.load for one in run.runs if one.load is not None]
    busy = f", load {min(loads_):.1f} to {max(loads_):.1f}" if loads_ else ""
    lines += ["", f"Margin {run.margin:.0%}, {run.seconds:g} s at most; {run.machine.slug}{busy}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--margin", type=float, default=0.05)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument(
        "--once", type=int, default=None, help="this repeat alone, as JSON on standard output"
    )
    asked = parser.parse_args()
    if asked.once is not None:
        print(dumps(written(once(asked.once, asked.margin, asked.seconds))))
        return
    run: Run | None = None
    for repeat in range(asked.repeats):
        command = [sys.executable, "-m", "benchmarks.gate", "--once", str(repeat)]
        limits = ["--margin", str(asked.margin), "--seconds", str(asked.seconds)]
        text = subprocess.run([*command, *limits], check=True, capture_output=True, text=True).stdout
        part = from_plain(Run, loads(text, "run", SCHEMA), "run")
        run = part if run is None else replace(run, runs=(*run.runs, *part.runs))
        print(repeat, *(f"{one.call}/{one.change}: {one.gate.verdict}" for one in part.runs), flush=True)
    if run is None:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{run.machine.slug}.json").write_text(dumps(written(run)) + "\n")
    if PAGE.exists():
        PAGE.write_text(put(PAGE.read_text(), "gate", table(run)))
    print(table(run))


if __name__ == "__main__":
    main()
