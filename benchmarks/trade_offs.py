"""`python -m benchmarks.trade_offs`: what each approximate technique saves and loses on models trained on real data.

Writes `benchmarks/results/trade-offs/<machine>.json` and the table in `docs/trade-offs.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastrec.backends import Eager, OnnxRuntime
from fastrec.capture import capture
from fastrec.cost import table_bytes
from fastrec.errors import BackendError
from fastrec.measure import Machine, interleaved, machine
from fastrec.measure.loss import Loss, loss_of
from fastrec.plain import dumps, from_plain, loads, to_plain
from fastrec.program import Program
from fastrec.techniques import (
    TECHNIQUES,
    FitTables,
    Fuse,
    ProjectPCA,
    QuantizeLinears,
    QuantizeTables,
    Technique,
)
from fastrec.techniques.settings import named
from fastrec.wording import amount, times

from .marks import put

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "trade-offs.md"
RESULTS = ROOT / "benchmarks" / "results" / "trade-offs"
SCHEMA = 1
SIZES = (1, 100, 1000)
ALLOWED = 5e-4
"""The loss of AUC that verdicts are about."""
CALIBRATION, BATCH = 8192, 512

# Those that are compiled in a moment: every setting is served by each.
BACKENDS = (Eager(), OnnxRuntime())
INT8 = (QuantizeTables(8, least_bytes=0), QuantizeLinears())


@dataclass(frozen=True)
class Row:
    """One setting on one model: bytes of tables, AUC lost with its bound, and medians as a share of the exact plan's."""

    data: str
    setting: str
    bytes: int
    before: float
    lost: float
    upper: float
    verdict: str
    speedup: Mapping[str, float]
    session: Mapping[str, str]
    skipped: str = ""


@dataclass(frozen=True)
class TradeOffs:
    """Every row, the bytes of each model's float32 tables, and the machine."""

    machine: Machine
    tables: Mapping[str, int]
    rows: tuple[Row, ...]


def settings(tables: int) -> dict[str, tuple[Technique, ...]]:
    """What is tried, by how it is written: every rung of every technique that approximates, limits of bytes, and some together."""
    order = list(TECHNIQUES)
    found: dict[str, tuple[Technique, ...]] = {"exact": (Fuse(),)}
    for kind in TECHNIQUES.values():
        for rung in kind.ladder() if kind is not FitTables else ():
            # The tables and layers of these models are small.
            sized = {"least_bytes": 0, **({"least": 4096} if kind is ProjectPCA else {})}
            technique = replace(rung, **{name: size for name, size in sized.items() if hasattr(rung, name)})  # type: ignore[arg-type]  # settings by name
            if not technique.exact:
                before = order.index(kind.name) < order.index(Fuse.name)
                found[named(technique)] = (technique, Fuse()) if before else (Fuse(), technique)
    for part in (4, 8, 16):
        found[f"FitTables, 1/{part} of the bytes"] = (Fuse(fold_bytes=0), FitTables(tables // part))
    found["int8"] = (Fuse(), *INT8)
    found["ProjectPCA(energy=0.95), then int8"] = (
        ProjectPCA(energy=0.95, least_bytes=0, least=4096),
        Fuse(),
        *INT8,
    )
    return found


def models() -> Iterator[tuple[str, nn.Module, Mapping[str, tuple[Tensor, ...]]]]:
    """The trained models of the examples, and the rows of every split, labels last."""
    sys.path.insert(0, str(ROOT / "examples"))
    import hotel_bookings
    import movietweetings
    import online_retail

    for name, example in (
        ("hotel bookings", hotel_bookings),
        ("movietweetings", movietweetings),
        ("online retail", online_retail),
    ):
        yield name, *example.trained()


def measure(seconds: float, only: Sequence[str]) -> TradeOffs:
    """Every setting on every model."""
    rows, tables = [], {}
    for data, model, parts in models():
        *known, _ = parts["train"]
        chosen = torch.randperm(len(known[0]), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
        batches = tuple(tuple(x[ids] for x in known) for ids in chosen.split(BATCH))
        plain = replace(capture(Program.read(model, tuple(x[:64] for x in known))), calibration=batches)
        tables[data] = table_bytes(plain.model)  # type: ignore[arg-type]  # captured, so a graph
        judged = _Judged(data, plain, parts["test"], seconds)
        for name, techniques in settings(tables[data]).items():
            if not only or any(word in name for word in only):
                rows.append(judged.row(name, techniques))
                print(rows[-1], flush=True)
    return TradeOffs(machine(), tables, tuple(rows))


class _Judged:
    """One model: its exact sessions, and what each setting is beside them."""

    def __init__(self, data: str, plain: Program, rows: tuple[Tensor, ...], seconds: float) -> None:
        self.data, self.plain, self.seconds = data, plain, seconds
        *self.inputs, self.labels = rows
        self.before = self.scores(plain)
        self.exact = self.calls(plain.with_model(Fuse().apply(plain).model), "exact, ")

    def scores(self, program: Program) -> np.ndarray[Any, Any]:
        found = [
            program.answers(batch)[0] for batch in zip(*(x.split(1000) for x in self.inputs), strict=True)
        ]
        return torch.cat(found).numpy()

    def calls(self, program: Program, prefix: str = "") -> dict[str, Callable[[list[Tensor]], object]]:
        """A call of each backend that runs it."""
        made: dict[str, Callable[[list[Tensor]], object]] = {}
        for backend in BACKENDS:
            try:
                session = backend.compile(program)
            except BackendError:  # products in bfloat16 run in eager alone
                continue
            made[prefix + backend.label] = lambda batch, session=session: session(*batch)
        return made

    def batch(self, rows: int) -> Callable[[int], list[Tensor]]:
        def draw(index: int) -> list[Tensor]:
            ids = torch.randint(len(self.labels), (rows,), generator=torch.Generator().manual_seed(index))
            return [x[ids] for x in self.inputs]

        return draw

    def row(self, name: str, techniques: Sequence[Technique]) -> Row:
        program, changes, skips = self.plain, 0, []
        for technique in techniques:
            applied = technique.apply(program)
            program = program.with_model(applied.model)
            if not technique.exact:
                changes, skips = changes + len(applied.changes), [*skips, *applied.skipped]
        loss = loss_of("auc", self.labels.numpy(), self.before, self.scores(program))
        speedup, session = {}, {}
        if program.model is not self.plain.model:
            speedup, session = self.timed(self.calls(program))
        size = table_bytes(program.model)  # type: ignore[arg-type]  # captured, so a graph
        untouched = len(techniques) > 1 and not changes
        skipped = skips[0].reason if untouched and skips else "no site" if untouched else ""
        return Row(self.data, name, size, *_lost(loss), speedup, session, skipped)

    def timed(
        self, calls: Mapping[str, Callable[[list[Tensor]], object]]
    ) -> tuple[dict[str, float], dict[str, str]]:
        """The fastest session against the fastest exact one, in turns, at each size."""
        speedup, session = {}, {}
        for rows in SIZES:
            everyone = {**self.exact, **calls}
            draw = self.batch(rows)
            look = interleaved(
                everyone, draw, seconds=self.seconds * 0.3, min_rounds=5, max_rounds=100, warmup=2
            )
            best, exact = (min(some, key=lambda one: look.latency(one).p50) for some in (calls, self.exact))
            seen = interleaved(
                {"exact": self.exact[exact], "this": calls[best]}, lambda i, draw=draw: draw(10_000 + i),
                seconds=self.seconds * 0.7, min_rounds=20, max_rounds=2000, warmup=2,
            )  # fmt: skip
            speedup[str(rows)], session[str(rows)] = seen.ratio("exact", "this").value, best
        return speedup, session


def _lost(loss: Loss) -> tuple[float, float, float, str]:
    return loss.before, loss.value, float(loss.upper or 0.0), loss.verdict(ALLOWED)


def table(found: TradeOffs) -> str:
    """The page's table, worst rows included."""
    lines = [f"{found.machine}", ""]
    for data, full in found.tables.items():
        rows = [row for row in found.rows if row.data == data]
        lines += [
            f"### {data}", "", f"Tables in float32: {amount(full)}; AUC {rows[0].before:.5f}.", "",
            "| setting | tables | smaller | AUC lost | at most (95 %) | verdict | speed at 1 | at 100 | at 1000 |",
            "|---|--:|--:|--:|--:|---|--:|--:|--:|",
        ]  # fmt: skip
        for row in rows:
            if row.skipped:
                lines.append(f"| `{row.setting}` | | | | | nothing done: {row.skipped} | | | |")
                continue
            speeds = " | ".join(times(row.speedup[str(n)]) for n in SIZES)
            lines.append(
                f"| `{row.setting}` | {amount(row.bytes)} | {full / row.bytes:.2f}x | {row.lost:.5f} | {row.upper:.5f} | "
                f"{row.verdict} | {speeds} |"
            )
        lines.append("")
    return "\n".join(lines)


def with_table(page: str, found: TradeOffs) -> str:
    """The page with this table between its marks."""
    return put(page, "trade-offs", table(found))


def read(path: Path) -> TradeOffs:
    """What was measured before."""
    return from_plain(TradeOffs, loads(path.read_text(), path.name, SCHEMA), path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each size of each setting")
    parser.add_argument("--only", nargs="*", default=(), help="settings that hold one of these words")
    parser.add_argument("--out", type=Path, help="where to write, the results folder if not given")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(given.seconds, given.only)
    path = given.out or RESULTS / f"{found.machine.slug}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(dumps({"schema": SCHEMA, **to_plain(found, "trade-offs")}) + "\n")
    if not given.only:
        PAGE.write_text(with_table(PAGE.read_text(), found))


if __name__ == "__main__":
    main()
