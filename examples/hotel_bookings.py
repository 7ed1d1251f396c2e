"""A ranker on real bookings, from a CSV file to a faster model with a report: `bash examples/demo.sh`."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from scipy.stats import rankdata
from torch import Tensor, nn

import fastrec
from fastrec.render import terminal

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


class DeepFM(nn.Module):
    """First order, pairwise products and a tower, over one table per field."""

    def __init__(self, sizes: list[int], numbers: int, width: int = 16) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.weights = nn.ModuleList(nn.Embedding(size, 1) for size in sizes)
        self.norm = nn.BatchNorm1d(numbers)
        layers: list[nn.Module] = []
        for before, after in ((len(sizes) * width + numbers, 256), (256, 128)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(0.2)]
        self.tower = nn.Sequential(*layers, nn.Linear(128, 1))
        for table in (*self.tables, *self.weights):
            nn.init.normal_(table.weight, std=0.01)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        """The chance that the booking is cancelled, (N,)."""
        rows = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
        first = torch.cat([weight(ids[:, i]) for i, weight in enumerate(self.weights)], 1).sum(
            1, keepdim=True
        )
        pairs = 0.5 * (rows.sum(1).square() - rows.square().sum(1)).sum(1, keepdim=True)
        deep = self.tower(torch.cat([rows.flatten(1), self.norm(numbers)], 1))
        return torch.sigmoid(first + pairs + deep).squeeze(1)


def train(model: nn.Module, part: tuple[Tensor, Tensor, Tensor], epochs: int = 4, size: int = 512) -> None:
    """Adam on the log loss."""
    ids, numbers, labels = part
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    for epoch in range(epochs):
        for chosen in track(
            torch.randperm(len(labels)).split(size), f"epoch {epoch + 1} of {epochs}", transient=True
        ):
            loss = nn.functional.binary_cross_entropy(model(ids[chosen], numbers[chosen]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@torch.no_grad()
def quality(model: nn.Module, part: tuple[Tensor, Tensor, Tensor]) -> str:
    """AUC by ranks, and the log loss, as the model serves: 1,000 rows at a time."""
    *inputs, labels = part
    scores = torch.cat([model(*batch) for batch in zip(*(x.split(1000) for x in inputs), strict=True)])
    positive, ranks = labels.numpy() == 1, rankdata(scores.numpy())
    count, rest = positive.sum(), (~positive).sum()
    auc = (ranks[positive].sum() - count * (count + 1) / 2) / (count * rest)
    return f"AUC {auc:.5f}   log loss {nn.functional.binary_cross_entropy(scores, labels):.5f}"


def main() -> None:
    """Load, train, compress, compare."""
    torch.manual_seed(0)
    parts, sizes = load()
    model = DeepFM(sizes, len(NUMBERS))
    train(model, parts["train"])
    model.eval()
    ids, numbers, _ = parts["test"]
    fast = fastrec.compress(model, (ids[:256], numbers[:256]))
    print(f"test, before: {quality(model, parts['test'])}\ntest, after:  {quality(fast, parts['test'])}\n")
    terminal(fast.report)


if __name__ == "__main__":
    main()
