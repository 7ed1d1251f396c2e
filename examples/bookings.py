"""The hotel bookings as tensors, and how good scores are on them."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

DATA = Path(__file__).parent / "data" / "hotel_bookings.csv.gz"
NUMBERS = ("lead_time", "stays_in_weekend_nights", "stays_in_week_nights", "adr", "previous_cancellations",
           "previous_bookings_not_canceled", "days_in_waiting_list", "total_of_special_requests")  # fmt: skip


def load() -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], list[int]]:
    """Ids (N, F), numbers (N, D) and labels (N,) of each split, and the number of ids of each field."""
    with gzip.open(DATA, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    fields = [name for name in rows[0] if name not in ("label", "split", *NUMBERS)]
    vocabularies = [
        {
            value: i + 1
            for i, value in enumerate(sorted({row[name] for row in rows if row["split"] == "train"}))
        }
        for name in fields
    ]
    parts = {}
    for split in ("train", "valid", "test"):
        chosen = [row for row in rows if row["split"] == split]
        # Row 0 of each table stands for values that training has not seen.
        ids = [
            [words.get(row[name], 0) for name, words in zip(fields, vocabularies, strict=True)]
            for row in chosen
        ]
        numbers = np.log1p(np.clip([[float(row[name]) for name in NUMBERS] for row in chosen], 0, None))
        labels = [float(row["label"]) for row in chosen]
        parts[split] = (torch.tensor(ids), torch.tensor(numbers, dtype=torch.float32), torch.tensor(labels))
    return parts, [len(words) + 1 for words in vocabularies]


@torch.no_grad()
def quality(model: nn.Module, part: tuple[Tensor, Tensor, Tensor]) -> str:
    """AUC by ranks, and the log loss, as the model serves: 1,000 rows at a time."""
    *inputs, labels = part
    scores = torch.cat([model(*batch) for batch in zip(*(x.split(1000) for x in inputs), strict=True)])
    positive, ranks = labels.numpy() == 1, rankdata(scores.numpy())
    count, rest = positive.sum(), (~positive).sum()
    auc = (ranks[positive].sum() - count * (count + 1) / 2) / (count * rest)
    return f"AUC {auc:.5f}   log loss {nn.functional.binary_cross_entropy(scores, labels):.5f}"
