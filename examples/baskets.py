"""The online retail baskets as tensors: who is shown which item, when, what they bought last, and whether they buy it."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import torch
from torch import Tensor

DATA = Path(__file__).parent / "data" / "retail_baskets.csv.gz"
FIELDS = ("user", "item", "country", "hour", "dow", "month", "price_bin", "bought_before", "n_baskets", "days_since_last")  # fmt: skip
LAST = 20
"""How many of the items bought last are looked at."""
REQUEST = {
    "ids": [i for i, name in enumerate(FIELDS) if name not in ("item", "price_bin", "bought_before")],
    "history": True,
}
"""What belongs to the customer and the moment: the same for all items that one request is shown."""


def load() -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], list[int]]:
    """Ids (N, 10), the items bought last (N, 20), oldest first, and labels (N,) of each split, and how many ids each field has.

    0 stands for what training has not seen, and for no item, in front of a history that is shorter.
    """
    with gzip.open(DATA, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    known = [row for row in rows if row["split"] == "train"]
    words = [{w: n for n, w in enumerate(sorted({row[name] for row in known}), 1)} for name in FIELDS]
    items = words[FIELDS.index("item")]
    parts = {}
    for split in ("train", "valid", "test"):
        chosen = [row for row in rows if row["split"] == split]
        ids = [[table.get(row[name], 0) for name, table in zip(FIELDS, words, strict=True)] for row in chosen]
        histories = [[items.get(item, 0) for item in row["hist"].split()][-LAST:] for row in chosen]
        history = [[0] * (LAST - len(bought)) + bought for bought in histories]
        labels = [float(row["label"]) for row in chosen]
        parts[split] = (torch.tensor(ids), torch.tensor(history), torch.tensor(labels))
    return parts, [len(table) + 1 for table in words]
