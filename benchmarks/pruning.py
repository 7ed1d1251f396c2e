"""`python -m benchmarks.pruning`: what taking parts out of trained models saves and loses, with and without recovery.

Writes `benchmarks/results/pruning/<machine>.json`, and the tables and curves of `docs/pruning.md`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastrec.cost import per_candidate
from fastrec.measure import Machine, machine
from fastrec.plain import from_plain, loads
from fastrec.program import Program
from fastrec.techniques import (
    DropBlocks,
    Fuse,
    ProjectPCA,
    PruneFields,
    PruneHeads,
    PruneNeurons,
    Recover,
    Technique,
)
from fastrec.wording import duration, times

from .judged import INT8, SIZES, Judged, calibrated
from .marks import put
from .pages import ROOT, run
from .pruning_models import models

PAGE = ROOT / "docs" / "pruning.md"
CURVES = ROOT / "docs" / "pruning.svg"
SCHEMA = 1
ALLOWED = 5e-4
"""The loss of AUC that verdicts are about."""
CALIBRATION = 64 * 512  # what `compress` reads of batches of 512
KEPT = (0.75, 0.5, 0.25, 0.1)
WAYS = {"cut": "cut alone", "refitted": "with least squares", "recovered": "and recovered"}


@dataclass(frozen=True)
class Row:
    """One setting on one model: its multiply-adds, of those there were, what it loses in float32 and in 8 bits, and its speed.

    `speedup` is the median of the fastest plan without it, exact or in 8 bits, over that of its fastest; `p50` is its own, in seconds.
    """

    model: str
    setting: str
    kept: float | None
    way: str
    products: float
    before: float
    lost: float
    upper: float
    verdict: str
    int8_upper: float
    speedup: Mapping[str, float]
    p50: Mapping[str, float]
    session: Mapping[str, str]
    skipped: str = ""


@dataclass(frozen=True)
class Pruning:
    """Every row, and the machine."""

    machine: Machine
    rows: tuple[Row, ...]


def settings() -> Iterator[tuple[str, float | None, str, tuple[Technique, ...]]]:
    """What is tried: how it is written, the share kept and the way for those of the curve, and its techniques before `Fuse`."""
    yield "nothing", None, "", ()
    for keep in KEPT:
        yield (
            f"PruneNeurons({keep}, reconstruct=False)",
            keep,
            "cut",
            (PruneNeurons(keep, reconstruct=False),),
        )
        yield f"PruneNeurons({keep})", keep, "refitted", (PruneNeurons(keep),)
        yield f"PruneNeurons({keep}), Recover()", keep, "recovered", (PruneNeurons(keep), Recover())
    for by in ("magnitude", "taylor", "fisher"):
        yield f'PruneNeurons(0.25, by="{by}")', None, "", (PruneNeurons(0.25, by=by),)  # type: ignore[arg-type]  # one of its words
    thin = ProjectPCA(least_bytes=0, least=4096)
    for keep in (0.25, 0.1):
        yield f"PruneNeurons({keep}), Recover(1000)", None, "", (PruneNeurons(keep), Recover(1000))
    yield "PruneNeurons(0.25), ProjectPCA(), Recover()", None, "", (PruneNeurons(0.25), thin, Recover())
    together = (PruneNeurons(0.5), PruneHeads(0.5), Recover(1000))
    yield "PruneNeurons(0.5), PruneHeads(0.5), Recover(1000)", None, "", together
    for part in (PruneFields(0.75), PruneFields(0.5), PruneHeads(0.75), PruneHeads(0.5), DropBlocks(1)):
        name = f"{type(part).__name__}({getattr(part, 'keep', getattr(part, 'drop', ''))})"
        yield name, None, "", (part,)
        yield f"{name}, Recover()", None, "", (part, Recover())


def measure(seconds: float, only: Sequence[str]) -> Pruning:
    """Every setting on every model."""
    rows = []
    for name, model, parts in models():
        plain = calibrated(model, parts["train"], CALIBRATION)
        plain = replace(plain, origin=plain.model)
        fused = _after(plain, (Fuse(),))
        judged = Judged(plain, parts["test"], seconds, {"exact": fused, "int8": _after(fused, INT8)})
        for setting, kept, way, techniques in settings():
            if not only or any(word in setting for word in only):
                row = _row(judged, name, setting, kept, way, techniques)
                if row.skipped and isinstance(techniques[-1], Recover):
                    continue  # the row of what it would recover says why
                rows.append(row)
                print(row, flush=True)
    return Pruning(machine(), tuple(rows))


def _products(program: Program) -> float:
    """Multiply-adds of a row once constants are folded; products that became lookups are counted as what they were."""
    return per_candidate(_after(program, (Fuse(fold_bytes=0),)))


def _after(program: Program, techniques: Sequence[Technique]) -> Program:
    for technique in techniques:
        program = program.with_model(technique.apply(program).model)
    return program


def _row(
    judged: Judged, model: str, setting: str, kept: float | None, way: str, techniques: Sequence[Technique]
) -> Row:
    program, changes, skips = judged.plain, 0, []
    for technique in techniques:
        applied = technique.apply(program)
        program = program.with_model(applied.model)
        changes, skips = changes + len(applied.changes), [*skips, *applied.skipped]
    share = _products(program) / _products(judged.plain)
    loss = judged.loss(program)
    if techniques and not changes:
        reason = skips[0].reason if skips else "no site"
        return Row(model, setting, kept, way, share, loss.before, 0.0, 0.0, "", 0.0, {}, {}, {}, reason)
    fused = _after(program, (Fuse(),))
    coded = _after(fused, INT8)
    timed = judged.timed(judged.calls({"": fused, "int8": coded}))
    return Row(
        model, setting, kept, way, share, loss.before, loss.value, float(loss.upper or 0.0), loss.verdict(ALLOWED),
        float(judged.loss(coded).upper or 0.0), *_by_size(timed),
    )  # fmt: skip


def _by_size(timed: Mapping[int, tuple[float, float, str]]) -> tuple[dict[str, Any], ...]:
    return tuple({str(rows): found[k] for rows, found in timed.items()} for k in range(3))


def table(found: Pruning) -> str:
    """The page's tables, worst rows included."""
    lines = [f"{found.machine}", ""]
    for model in dict.fromkeys(row.model for row in found.rows):
        rows = [row for row in found.rows if row.model == model]
        lines += [
            f"### {model}", "", f"AUC {rows[0].before:.5f}.", "",
            "| setting | multiply-adds | fewer | AUC lost | at most (95 %) | verdict | in 8 bits at most | at 1 | at 100 | at 1000 |",
            "|---|--:|--:|--:|--:|---|--:|--:|--:|--:|",
        ]  # fmt: skip
        for row in rows:
            if row.skipped:
                lines.append(f"| `{row.setting}` | | | | | nothing done: {row.skipped} | | | | |")
                continue
            speeds = " | ".join(f"{times(row.speedup[str(n)])} ({duration(row.p50[str(n)])})" for n in SIZES)
            lines.append(
                f"| `{row.setting}` | {row.products:.1%} | {1 / row.products:.2f}x | {row.lost:.5f} | {row.upper:.5f} | {row.verdict} "
                f"| {row.int8_upper:.5f} | {speeds} |"
            )
        lines.append("")
    return "\n".join(lines)


def curves(found: Pruning) -> None:
    """Draws what each share of the multiply-adds loses, its bound as a bar: cut alone, with least squares, and recovered."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "fastrec"
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row.model for row in found.rows))
    figure, axes = plt.subplots(
        1, len(names), figsize=(4.2 * len(names), 3.6), layout="constrained", squeeze=False
    )
    for axis, name in zip(axes[0], names, strict=True):
        for (way, said), colour in zip(WAYS.items(), ("#9aa0a6", "#d97706", "#2563eb"), strict=True):
            rows = [row for row in found.rows if (row.model, row.way) == (name, way) and not row.skipped]
            axis.errorbar(
                [100 * row.products for row in rows], [1e3 * row.lost for row in rows],
                yerr=[1e3 * (row.upper - row.lost) for row in rows], label=said, color=colour, marker="o", ms=4, lw=1.5, capsize=2,
            )  # fmt: skip
        axis.axhline(1e3 * ALLOWED, color="#6b7280", lw=0.8, ls="--")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("multiply-adds left, %", fontsize=9)
        axis.set_yscale("symlog", linthresh=1.0)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("AUC lost, thousandths", fontsize=9)
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.savefig(CURVES, metadata={"Date": None})
    plt.close(figure)


def with_table(page: str, found: Pruning) -> str:
    """The page with these tables between its marks."""
    return put(page, "pruning", table(found))


def read(path: Path) -> Pruning:
    """What was measured before."""
    return from_plain(Pruning, loads(path.read_text(), path.name, SCHEMA), path.name)


def show(found: Pruning) -> None:
    """Puts it on the page."""
    PAGE.write_text(with_table(PAGE.read_text(), found))
    curves(found)


if __name__ == "__main__":
    run(__doc__, "pruning", SCHEMA, measure, show)
