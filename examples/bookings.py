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
PAGE = Path(__file__).parent / "report.html"
NUMBERS = ("lead_time", "stays_in_weekend_nights", "stays_in_week_nights", "adr", "previous_cancellations",
           "previous_bookings_not_canceled", "days_in_waiting_list", "total_of_special_requests")  # fmt: skip
FIELDS = ("hotel", "arrival_date_month", "arrival_date_week_number", "arrival_date_day_of_month", "adults", "children",
          "babies", "meal", "country", "market_segment", "distribution_channel", "is_repeated_guest",
          "reserved_room_type", "deposit_type", "agent", "company", "customer_type")  # fmt: skip
OFFER = ("hotel", "meal", "reserved_room_type", "deposit_type", "adr")
REQUEST = {
    "ids": [i for i, name in enumerate(FIELDS) if name not in OFFER],
    "numbers": [i for i, name in enumerate(NUMBERS) if name not in OFFER],
}
"""What belongs to the guest and the stay: the same for all offers that one request is shown."""


def load() -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], list[int]]:
    """Ids (N, F), numbers (N, D) and labels (N,) of each split, and the number of ids of each field."""
    with gzip.open(DATA, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    vocabularies = [
        {
            value: i + 1
            for i, value in enumerate(sorted({row[name] for row in rows if row["split"] == "train"}))
        }
        for name in FIELDS
    ]
    parts = {}
    for split in ("train", "valid", "test"):
        chosen = [row for row in rows if row["split"] == split]
        # Row 0 of each table stands for values that training has not seen.
        ids = [
            [words.get(row[name], 0) for name, words in zip(FIELDS, vocabularies, strict=True)]
            for row in chosen
        ]
        numbers = np.log1p(np.clip([[float(row[name]) for name in NUMBERS] for row in chosen], 0, None))
        labels = [float(row["label"]) for row in chosen]
        parts[split] = (torch.tensor(ids), torch.tensor(numbers, dtype=torch.float32), torch.tensor(labels))
    return parts, [len(words) + 1 for words in vocabularies]


def offers(part: tuple[Tensor, Tensor, Tensor], guest: int, count: int) -> tuple[Tensor, Tensor]:
    """Ids and numbers of one guest's request beside the first `count` rows' offers."""
    ids, numbers = part[0][:count].clone(), part[1][:count].clone()
    ids[:, REQUEST["ids"]] = part[0][guest, REQUEST["ids"]]
    numbers[:, REQUEST["numbers"]] = part[1][guest, REQUEST["numbers"]]
    return ids, numbers


@torch.no_grad()
def quality(model: nn.Module, part: tuple[Tensor, ...]) -> str:
    """AUC by ranks, and the log loss, as the model serves: 1,000 rows at a time."""
    *inputs, labels = part
    scores = torch.cat([model(*batch) for batch in zip(*(x.split(1000) for x in inputs), strict=True)])
    positive, ranks = labels.numpy() == 1, rankdata(scores.numpy())
    count, rest = positive.sum(), (~positive).sum()
    auc = (ranks[positive].sum() - count * (count + 1) / 2) / (count * rest)
    return f"AUC {auc:.5f}   log loss {nn.functional.binary_cross_entropy(scores, labels):.5f}"
