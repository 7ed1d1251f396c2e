"""`python -m benchmarks.trade_offs`: what each approximate technique saves and loses on models trained on real data.

Writes `benchmarks/results/trade-offs/<machine>.json` and the table in `docs/trade-offs.md`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from fastrec.cost import table_bytes
from fastrec.measure import Machine, machine
from fastrec.measure.loss import Loss
from fastrec.plain import from_plain, loads
from fastrec.techniques import (
    TECHNIQUES,
    FitTables,
    Fuse,
    ProjectPCA,
    Technique,
)
from fastrec.techniques.settings import named
from fastrec.wording import amount, times

from .judged import INT8, SIZES, Judged, calibrated
from .marks import put
from .pages import ROOT, run

PAGE = ROOT / "docs" / "trade-offs.md"
SCHEMA = 1
ALLOWED = 5e-4
"""The loss of AUC that verdicts are about."""


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
        for rung in kind.ladder() if kind is not FitTables and not kind.mends else ():
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
        plain = calibrated(model, parts["train"])
        tables[data] = table_bytes(plain.model)  # type: ignore[arg-type]  # captured, so a graph
        judged = Judged(plain, parts["test"], seconds, {"exact": plain.with_model(Fuse().apply(plain).model)})
        for name, techniques in settings(tables[data]).items():
            # What takes parts out has a page of its own.
            asked = any(word in name for word in only) if only else not any(t.cuts for t in techniques)
            if asked:
                rows.append(_row(judged, data, name, techniques))
                print(rows[-1], flush=True)
    return TradeOffs(machine(), tables, tuple(rows))


def _row(judged: Judged, data: str, name: str, techniques: Sequence[Technique]) -> Row:
    """One setting beside the exact plan."""
    program, changes, skips = judged.plain, 0, []
    for technique in techniques:
        applied = technique.apply(program)
        program = program.with_model(applied.model)
        if not technique.exact:
            changes, skips = changes + len(applied.changes), [*skips, *applied.skipped]
    speedup, session = {}, {}
    if program.model is not judged.plain.model:
        timed = judged.timed(judged.calls({"": program}))
        speedup = {str(rows): ratio for rows, (ratio, _, _) in timed.items()}
        session = {str(rows): best for rows, (_, _, best) in timed.items()}
    size = table_bytes(program.model)  # type: ignore[arg-type]  # captured, so a graph
    untouched = len(techniques) > 1 and not changes
    skipped = skips[0].reason if untouched and skips else "no site" if untouched else ""
    return Row(data, name, size, *_lost(judged.loss(program)), speedup, session, skipped)


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


def show(found: TradeOffs) -> None:
    """Puts it on the page."""
    PAGE.write_text(with_table(PAGE.read_text(), found))


if __name__ == "__main__":
    run(__doc__, "trade-offs", SCHEMA, measure, show)
