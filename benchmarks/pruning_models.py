"""What `benchmarks.pruning` prunes: the examples' ranker, a cross network on the same bookings, and a SASRec on the retail baskets."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["models"]

EXAMPLES = Path(__file__).parent.parent / "examples"
LAST = 20


class DCNv2(nn.Module):
    """ids (N, F) and numbers (N, D) -> probability (N,): three full-rank cross layers beside a tower."""

    def __init__(self, sizes: list[int], numbers: int, width: int = 16) -> None:
        super().__init__()
        joined = len(sizes) * width + numbers
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.norm = nn.BatchNorm1d(numbers)
        self.cross = nn.ModuleList(nn.Linear(joined, joined) for _ in range(3))
        self.deep = nn.Sequential(
            nn.Linear(joined, 512),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Dropout(0.2),
        )
        self.head = nn.Linear(joined + 256, 1)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.01)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        start = torch.cat([*rows, self.norm(numbers)], 1)
        crossed = start
        for layer in self.cross:
            crossed = start * layer(crossed) + crossed
        return torch.sigmoid(self.head(torch.cat([crossed, self.deep(start)], 1))).squeeze(1)


class Block(nn.Module):
    """Causal self-attention of two heads and a feed-forward part, each behind its norm."""

    causal: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("causal", torch.triu(torch.ones(LAST, LAST, dtype=torch.bool), diagonal=1))

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], LAST, self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        query, key, value = self.split(self.query(y)), self.split(self.key(y)), self.split(self.value(y))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        mixed = scores.masked_fill(self.causal, -1e9).softmax(-1) @ value
        x = x + self.output(mixed.transpose(1, 2).reshape(x.shape[0], LAST, -1))
        return cast("Tensor", x + self.outer(torch.relu(self.inner(self.second(x)))))


class SASRec(nn.Module):
    """The items bought last (N, 20), oldest first and 0 in front, and an item (N,) -> probability that it is bought (N,)."""

    def __init__(self, items: int, width: int = 64, heads: int = 2, blocks: int = 2) -> None:
        super().__init__()
        self.items = nn.Embedding(items, width, padding_idx=0)
        self.bias = nn.Embedding(items, 1)
        self.positions = nn.Parameter(0.02 * torch.randn(LAST, width))
        self.dropout = nn.Dropout(0.3)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.items.weight, std=0.05)
        nn.init.zeros_(self.bias.weight)

    def states(self, history: Tensor) -> Tensor:
        """What each position says of the item after it, (N, 20, width)."""
        x = self.dropout(self.items(history) * (history != 0).unsqueeze(-1) + self.positions)
        for block in self.blocks:
            x = block(x)
        return cast("Tensor", self.norm(x))

    def logits(self, states: Tensor, items: Tensor) -> Tensor:
        return (states * self.items(items)).sum(-1) + self.bias(items).squeeze(-1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(self.states(history)[:, -1], item))


def train_next_item(model: SASRec, history: Tensor, item: Tensor, epochs: int = 5, size: int = 256) -> None:
    """Adam on the log loss of each next item against one drawn by popularity; what was bought counts five times a step of its history."""
    popularity = torch.bincount(item, minlength=len(model.bias.weight)).float().pow(0.75)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(epochs):
        for chosen in torch.randperm(len(item)).split(size):
            after = torch.cat([history[chosen, 1:], item[chosen, None]], 1)
            other = torch.multinomial(popularity, after.numel(), replacement=True).view_as(after)
            states = model.states(history[chosen])
            weights = (after != 0).float()
            weights[:, :-1] *= 0.2
            off = F.softplus(-model.logits(states, after)) + F.softplus(model.logits(states, other))
            loss = (off * weights).sum() / weights.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def models() -> Iterator[tuple[str, nn.Module, Mapping[str, tuple[Tensor, ...]]]]:
    """Each by its name, trained, and the rows of every split, labels last."""
    sys.path.insert(0, str(EXAMPLES))
    import baskets
    import bookings
    import hotel_bookings

    yield "DeepFM, hotel bookings", *hotel_bookings.trained()
    parts, sizes = bookings.load()
    torch.manual_seed(0)
    cross = DCNv2(sizes, len(bookings.NUMBERS))
    hotel_bookings.train(cross, parts["train"])
    yield "DCNv2, hotel bookings", cross.eval(), parts
    bought, fields = baskets.load()
    place = baskets.FIELDS.index("item")
    shown = {
        split: (history, ids[:, place].contiguous(), labels)
        for split, (ids, history, labels) in bought.items()
    }
    torch.manual_seed(0)
    sasrec = SASRec(fields[place])
    history, item, labels = shown["train"]
    train_next_item(sasrec, history[labels == 1], item[labels == 1])
    yield "SASRec, online retail", sasrec.eval(), shown
