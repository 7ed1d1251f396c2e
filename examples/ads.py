"""Bids need probabilities: whether a booking is kept, its calibration certified, within a time: `python examples/ads.py`.

A request is a guest and a stay. What competes for it are offers, each worth its price times the chance that it is kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import torch
from bookings import NUMBERS, REQUEST, offers
from conversions import Part, batches, judged, load, scored
from dcnv2 import DCNv2
from hotel_bookings import DeepFM, train
from measured import LATENCY, LOSSES, latency, losses
from scipy.optimize import brentq
from told import run, table
from torch import nn

import fastrec
from fastrec.measure import Evaluator
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables

MODELS = {"DeepFM": DeepFM, "DCNv2": DCNv2}
METRICS = ["auc", "logloss", "ece", "calibration"]
SIZES = (10, 100, 500)
"""How many offers a request may have."""
BUDGET = fastrec.Budget({"auc": 0.001, "logloss": 0.001, "ece": 0.01, "calibration": 0.01}, p95_ms=2.0)
RECIPE = [Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()]
"""What the short form takes in place of a search."""
Row = tuple[str, ...]


@torch.no_grad()
def centre(model: nn.Module, part: Part) -> None:
    """Moves the last bias so that as many of these bookings are foreseen to be kept as were: the rate drifts with the season."""
    logits, kept = torch.logit(scored(model, part).double()), part[2].double()
    model.tower[-1].bias += brentq(lambda by: float((torch.sigmoid(logits + by) - kept).mean()), -9, 9)


def bids(served: nn.Module, part: Part, prices: Sequence[float], guest: int) -> str:
    """What the best offers for one guest are worth: their prices times the chances that they are kept."""
    chances = served(*offers(part, guest, len(prices)))
    best = (chances * torch.tensor(prices)).topk(3)
    said = [
        f"{worth:.2f} for offer {at} ({prices[at]:.0f} a night, kept with {chances[at]:.3f})"
        for worth, at in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return f"guest {guest}, {len(prices)} offers, the highest bids: {'; '.join(said)}"


def updated(folder: str, model: nn.Module, part: Part, certain: Evaluator) -> tuple[nn.Module, str]:
    """What serves after the model has learned from these bookings, with what is said: it if all gates open, else what served before."""
    train(model.train(), part, rate=5e-4)
    centre(model.eval(), part)
    try:
        batch, known = offers(part, 0, 100), batches(part)
        return fastrec.update(folder, model, batch=batch, calibration=known, evaluate=certain), "updated"
    except fastrec.UpdateRefused as refused:
        return fastrec.load(
            folder
        ), f"the model of before goes on, {str(refused).replace(folder, 'the artifact')}"


def main(short: bool = False) -> Sequence[str]:
    """Both models: trained, calibrated, compressed within the budget, served, and brought up to what came of it."""
    torch.manual_seed(0)
    lines, parts, sizes = load(every=3 if short else 1)
    prices = lines["served"].adr.tolist()[:100]
    certain = judged(parts["valid"], METRICS)
    # One request a row, as they were asked.
    answered, later = (judged(parts[name], METRICS, size=1) for name in ("served", "test"))
    told, quality, taken, after = list[str](), list[Row](), list[Row](), list[Row]()
    for name, kind in MODELS.items():
        model = kind(sizes, len(NUMBERS))
        train(model, parts["train"])
        centre(model.eval(), parts["valid"])
        fast = fastrec.compress(
            model, offers(parts["valid"], 0, 100), request_features=REQUEST, calibration=batches(parts["train"]),
            evaluate=certain, budget=BUDGET, recipe=RECIPE if short else None, batch_sizes=SIZES,
            seconds=8 if short else 100,
        )  # fmt: skip
        report = fast.report
        certified = "".join(f"\n- {one}" for one in report.accuracy)
        told.append(f"{name}: {report.headline}; {report.in_time}.\n{certified}")
        taken += [(name, *row) for row in latency(report)]
        with tempfile.TemporaryDirectory() as scratch:
            folder = f"{scratch}/ranker"
            fast.save(folder)
            served = fastrec.load(folder)
            told.append(f"{name}, {bids(served, parts['served'], prices, guest=0)}.")
            found = answered.losses(answered.scores(model), answered.scores(served))
            quality += [(name, *row) for row in losses(found)]
            # Feedback: what became of the bookings that it answered.
            new, said = updated(folder, model, parts["served"], certain)
            told.append(f"{name}, after learning from what it answered: {said}.")
            before, now = later(served), later(new)
        after += [(name, metric, f"{before[metric]:.5f}", f"{now[metric]:.5f}") for metric in METRICS]
    count = {name: len(part[2]) for name, part in parts.items()}
    return [
        *told,
        f"{count['served']:,} bookings that were answered, by the model and by what serves (a loss below zero is a gain):\n\n"
        + table(("model", *LOSSES), quality),
        f"A guest and so many offers; 95 % of calls may take up to {BUDGET.p95_ms:g} ms:\n\n"
        + table(("model", *LATENCY), taken),
        f"{count['test']:,} bookings of the weeks after, had it learned nothing, and updated:\n\n"
        + table(("model", "metric", "as it was", "updated"), after),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main, __doc__)
