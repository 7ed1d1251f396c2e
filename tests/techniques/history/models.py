"""Target attention over padded histories, in the ways people write it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Attention", "Weights", "padded"]

Weights = Literal["sum", "sigmoid", "softmax", "where", "times", "low", "added", "one_less", "none"]


class Attention(nn.Module):
    """A candidate scores each event by a small network, or by a product, and sums values by the scores, in one way or several."""

    def __init__(self, *weights: Weights, steps: int = 40, width: int = 8, net: bool = True) -> None:
        super().__init__()
        self.items, self.places = nn.Embedding(60, width, padding_idx=0), nn.Embedding(steps, width)
        self.kinds = nn.Embedding(7, width)
        self.unit = nn.Sequential(nn.Linear(3 * width, 64), nn.PReLU(), nn.Linear(64, 1))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(2 * width, 1)
        self.weights, self.net = weights, net

    def forward(self, item: Tensor, history: Tensor) -> tuple[Tensor, ...]:
        query, keys = self.items(item), self.items(history) + self.kinds(history % 7)
        steps = torch.arange(history.shape[1])
        scored = keys + self.places(steps) if self.net else keys
        if self.net:
            spread = query.unsqueeze(1).expand(-1, history.shape[1], -1)
            score = self.unit(torch.cat([spread, scored, spread * scored], -1)).squeeze(-1)
        else:
            score = (self.key(scored) @ self.query(query).unsqueeze(-1)).squeeze(-1)
        pooled = [self.pool(weights, score, history, keys) for weights in self.weights]
        return tuple(self.head(torch.cat([vector, query], 1)).squeeze(1) for vector in pooled)

    def pool(self, weights: Weights, score: Tensor, history: Tensor, keys: Tensor) -> Tensor:
        padding = history == 0
        if weights == "sum":
            return (score.masked_fill(padding, 0.0).unsqueeze(-1) * keys).sum(1)
        if weights == "sigmoid":
            return (torch.sigmoid(score).unsqueeze(-1) * keys * (history != 0).unsqueeze(-1).float()).mean(1)
        if weights == "times":
            return ((score * (~padding).float()).unsqueeze(1) @ self.value(keys)).squeeze(1)
        if weights == "none":
            return (score.softmax(1).unsqueeze(-1) * self.value(keys)).sum(1)
        if weights == "where":
            filled = torch.where(history > 0, score, -torch.inf)
        elif weights == "added":
            filled = score + padding.float() * -1e9
        elif weights == "one_less":
            filled = score + (1.0 - (history != 0).float()) * -10000.0
        elif weights == "low":
            filled = score.masked_fill(padding, -1e9)
        else:
            filled = torch.where(padding, float("-inf"), score)
        return (filled.softmax(-1).unsqueeze(1) @ torch.tanh(self.value(keys))).squeeze(1)


def padded(rows: int, steps: int, rng: torch.Generator, fewest: int = 1) -> Tensor:
    """Histories whose last events are real, zeros before them."""
    padding = torch.randint(0, steps + 1 - fewest, (rows, 1), generator=rng)
    ids = torch.randint(1, 60, (rows, steps), generator=rng)
    return ids * (torch.arange(steps) >= padding)
