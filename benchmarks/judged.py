"""One trained model: what its answers are worth on labelled rows, and how fast forms of it are beside others, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastrec.backends import Eager, OnnxRuntime
from fastrec.capture import capture
from fastrec.errors import BackendError
from fastrec.measure import interleaved
from fastrec.measure.loss import Loss, loss_of
from fastrec.program import Program
from fastrec.techniques import QuantizeLinears, QuantizeTables

__all__ = ["INT8", "SIZES", "Call", "Judged", "calibrated"]

SIZES = (1, 100, 1000)
INT8 = (QuantizeTables(8, least_bytes=0), QuantizeLinears())
CALIBRATION, BATCH = 8192, 512
Call = Callable[[list[Tensor]], object]

# Those that are compiled in a moment: every setting is served by each.
BACKENDS = (Eager(), OnnxRuntime())


def calibrated(model: nn.Module, rows: tuple[Tensor, ...], count: int = CALIBRATION) -> Program:
    """The captured program of a model, with batches drawn of these rows, labels last."""
    *known, _ = rows
    chosen = torch.randperm(len(known[0]), generator=torch.Generator().manual_seed(0))[:count]
    batches = tuple(tuple(x[ids] for x in known) for ids in chosen.split(BATCH))
    return replace(capture(Program.read(model, tuple(x[:64] for x in known))), calibration=batches)


class Judged:
    """A program, its labelled rows (labels last), and the forms of it that others are compared with, by name."""

    def __init__(
        self, plain: Program, rows: tuple[Tensor, ...], seconds: float, beside: Mapping[str, Program]
    ) -> None:
        self.plain, self.seconds = plain, seconds
        *self.inputs, self.labels = rows
        self.before = self.scores(plain)
        self.beside = self.calls(beside)

    def scores(self, program: Program) -> np.ndarray[Any, Any]:
        """What a program answers to all rows."""
        found = [
            program.answers(batch)[0] for batch in zip(*(x.split(1000) for x in self.inputs), strict=True)
        ]
        return torch.cat(found).numpy()

    def loss(self, program: Program) -> Loss:
        """The AUC that a program loses."""
        return loss_of("auc", self.labels.numpy(), self.before, self.scores(program))

    def calls(self, programs: Mapping[str, Program]) -> dict[str, Call]:
        """A call of each program by each backend that runs it."""
        made: dict[str, Call] = {}
        for name, program in programs.items():
            for backend in BACKENDS:
                try:
                    session = backend.compile(program)
                except BackendError:  # products in bfloat16 run in eager alone
                    continue
                label = f"{name}, {backend.label}" if name else backend.label
                made[label] = lambda batch, session=session: session(*batch)  # type: ignore[misc]  # a default argument
        return made

    def batch(self, rows: int) -> Callable[[int], list[Tensor]]:
        """Fresh batches of so many rows."""

        def draw(index: int) -> list[Tensor]:
            ids = torch.randint(len(self.labels), (rows,), generator=torch.Generator().manual_seed(index))
            return [x[ids] for x in self.inputs]

        return draw

    def timed(self, calls: Mapping[str, Call]) -> dict[int, tuple[float, float, str]]:
        """For each size the fastest of those beside over the fastest of `calls`, its median in seconds, and its name."""
        found = {}
        for rows in SIZES:
            draw = self.batch(rows)
            look = interleaved(
                {**self.beside, **calls},
                draw,
                seconds=self.seconds * 0.3,
                min_rounds=5,
                max_rounds=100,
                warmup=2,
            )
            best, other = (min(some, key=lambda one: look.latency(one).p50) for some in (calls, self.beside))
            seen = interleaved(
                {"beside": self.beside[other], "this": calls[best]}, lambda i, draw=draw: draw(10_000 + i),
                seconds=self.seconds * 0.7, min_rounds=20, max_rounds=2000, warmup=2,
            )  # fmt: skip
            found[rows] = seen.ratio("beside", "this").value, seen.latency("this").p50, best
        return found
