"""The bookings ranker in int8, within a budget that the validation rows certify: `python examples/bookings_int8.py`."""

from __future__ import annotations

import torch
from bookings import quality
from hotel_bookings import trained

import fastrec
from fastrec.measure import evaluator
from fastrec.render import terminal
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables


def main() -> None:
    """Load, train, compress within 0.0002 of AUC, compare on rows that no choice has seen."""
    model, parts = trained()
    ids, numbers, labels = parts["valid"]
    chosen = torch.randperm(len(parts["train"][2]))[:4096].split(256)
    fast = fastrec.compress(
        model,
        (ids[:256], numbers[:256]),
        recipe=[Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()],
        calibration=[(parts["train"][0][rows], parts["train"][1][rows]) for rows in chosen],
        evaluate=evaluator(
            zip(ids.split(1000), numbers.split(1000), strict=True), labels, ["auc", "logloss"]
        ),
        budget=fastrec.Budget(max_loss={"auc": 0.0002, "logloss": 0.001}),
    )
    print(f"test, before: {quality(model, parts['test'])}\ntest, after:  {quality(fast, parts['test'])}\n")
    terminal(fast.report)


if __name__ == "__main__":
    main()
