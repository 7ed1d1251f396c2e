"""Conversions under the constraints of regulated use; what an audit asks for goes to examples/audit: `python examples/regulated.py`.

The worst segment is bounded, each step explained, what serves comes out again, and what was checked is stated. It demonstrates
these constraints on public data of hotels; it is no model of finance.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from bookings import NUMBERS
from checked import damaged, repeated, unknown
from conversions import batches, judged, load, scored
from explained import FEATURES, STEPS, by_feature, moved, shown, steps
from hotel_bookings import DeepFM, train
from measured import LATENCY, LOSSES, latency, losses
from told import run, table
from torch import Tensor, nn

import fastrec
from fastrec.artifact import check
from fastrec.measure import Evaluator, popularity
from fastrec.render import csv, write_html
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables

AUDIT = Path(__file__).parent / "audit"
METRICS = ["auc", "logloss"]
BUDGET = fastrec.Budget({"auc": 0.001, "logloss": 0.001}, segments={"auc": 0.005, "logloss": 0.005})
RECIPE = [Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()]
SIZES = (1, 100, 1000)
SEGMENTS = ("segment", "metric", "rows", "lost", "at most (95 %)", "verdict")
FEWEST = 100
"""Rows of either label that a segment has to have for a bound to be believed."""
Rows = list[tuple[Tensor, Tensor]]


def together(values: pd.Series, kept: pd.Series) -> pd.Series:
    """These values as segments, the smallest of them as one, "others", until it has enough rows of either label."""
    rarest = pd.crosstab(values, kept).min(axis=1).sort_values()
    if rarest.iloc[0] >= FEWEST:
        return values
    others = rarest.index[: int((rarest.cumsum() < FEWEST).sum()) + 1]
    return values.where(~values.isin(others), "others")


def segments(known: pd.DataFrame, lines: pd.DataFrame) -> dict[str, np.ndarray]:
    """Those of whom none is to be served worse than is allowed: a value for each row."""
    named = {name: together(lines[name], lines.kept) for name in ("hotel", "market_segment", "customer_type")}
    country = popularity(lines.country.to_numpy(str), known.country.to_numpy(str), parts=3)
    rest = {"country": np.where(country == "unseen", "3 (tail)", country)}
    return {name: values.to_numpy(str) for name, values in named.items()} | rest


def compressed(model: nn.Module, known: Rows, certain: Evaluator, seconds: float) -> fastrec.CompressedModel:
    """What serves, within the budget of all rows and of each segment."""
    return fastrec.compress(
        model, known[0], recipe=RECIPE, calibration=known, evaluate=certain, budget=BUDGET, batch_sizes=SIZES,
        seconds=seconds,
    )  # fmt: skip


def updated(
    model: nn.Module, known: Rows, certain: Evaluator, folder: Path, budget: fastrec.Budget = BUDGET
) -> str:
    """What becomes of an update of an artifact to the model as it is now."""
    try:
        fastrec.update(folder, model, batch=known[0], calibration=known, evaluate=certain, budget=budget)
    except fastrec.UpdateRefused as error:
        return f"refused, {error.args[0].partition(' was not updated: ')[2]}"
    return "done"


def learned(folder: Path, update: partial[str]) -> dict[str, str]:
    """What becomes of an update that may lose nothing, and of one within the budget, on a copy of the artifact."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(folder, f"{scratch}/copy"))
        strict = update(copy, fastrec.Budget(segments=dict.fromkeys(METRICS, 0.0)))
        untouched = check(copy) == check(folder)
        return {
            "a new checkpoint that may lose nothing in any segment": strict,
            "the artifact after that": "as it was" if untouched else "another",
            "a new checkpoint within the budget": update(copy),
        }


def written(fast: fastrec.CompressedModel, features: pd.DataFrame, statement: str) -> list[tuple[str, ...]]:
    """Writes what an audit asks for beside the artifact; gives each file with its size and the beginning of its digest."""
    (AUDIT / "report.json").write_text(fast.report.to_json())
    write_html(fast.report, AUDIT / "report.html")
    for name, text in csv(fast.report).items():
        (AUDIT / f"{name}.csv").write_text(text, newline="")
    features.to_csv(AUDIT / "features.csv", index=False)
    (AUDIT / "statement.md").write_text(f"{statement}\n")
    files = sorted(path for path in AUDIT.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    sums = {str(path.relative_to(AUDIT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (AUDIT / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    return [(name, f"{(AUDIT / name).stat().st_size:,}", digest[:12]) for name, digest in sums.items()]


def main(short: bool = False) -> Sequence[str]:
    """Train, compress within the budget of each segment, explain, repeat, try what is not allowed, and state what was seen."""
    torch.manual_seed(0)
    lines, parts, sizes = load()
    model, known = DeepFM(sizes, len(NUMBERS)), batches(parts["train"])
    train(model, parts["train"])
    certain = judged(parts["valid"], METRICS, segments=segments(lines["train"], lines["valid"]))
    made = partial(compressed, model.eval(), known, certain, 8 if short else 60)
    update = partial(updated, model, known, certain)
    fast, folder, (*inputs, kept) = made(), AUDIT / "artifact", parts["test"]
    AUDIT.mkdir(exist_ok=True)
    fast.save(folder)

    report, served = fast.report, scored(fast, parts["test"])
    each = [*steps(model, fast.recipe, known, inputs), ("as it serves", served)]
    features = by_feature(lines["test"], served - each[0][1])
    bounded = [
        (f"{one.grouping}: {one.segment}", one.metric, f"{one.rows:,}", f"{one.value:.5f}", f"{one.upper:.5f}", one.verdict)
        for one in report.segments
    ]  # fmt: skip
    judge = judged(parts["test"], METRICS)
    quality = losses(judge.losses(judge.scores(model), judge.scores(fast)))
    found = {
        "an id that no table has": unknown(fast, parts["test"]),
        "one bit of the tensors changed": damaged(folder),
    }
    found |= repeated(fast, made, update, folder, parts["served"])
    # Feedback: what became of the bookings that came since.
    train(model.train(), parts["served"], rate=5e-4)
    model.eval()
    found |= learned(folder, update)
    told = [
        f"{report.headline}.\n" + "".join(f"\n- {one}" for one in report.accuracy),
        f"Segments, in each of which so much may be lost: {dict(BUDGET.segments)} (below zero it is a gain):\n\n{table(SEGMENTS, bounded)}",
        f"{len(kept):,} later bookings, that chose nothing, the model and what serves:\n\n{table(LOSSES, quality)}",
        f"So many bookings a call, the model and what serves:\n\n{table(LATENCY, latency(report))}",
        f"What each step did to the scores of these later bookings, beside the step before:\n\n{table(STEPS, moved(fast, each, kept))}",
        f"How far scores moved by the values of a feature, the most telling first:\n\n{table(FEATURES, shown(features.head(6)))}",
        f"What was checked:\n\n{table(('what', 'outcome'), [*found.items()])}",
    ]
    statement = [(__doc__ or "").partition("\n\n")[2].strip(), *told, str(report.machine)]
    files = written(fast, features, "\n\n".join(statement))
    return [
        *told,
        f"The folder of the audit, {len(files)} files:\n\n{table(('file', 'bytes', 'SHA-256'), files)}",
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main, __doc__)
