"""Towers: users and items, pictures, words, bags."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Entry, ids, tower


class Factors(nn.Module):
    """Matrix factorisation with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(40, 8), nn.Embedding(50, 8)
        self.user_bias, self.item_bias = nn.Embedding(40, 1), nn.Embedding(50, 1)
        self.mean = nn.Parameter(torch.tensor(3.5))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        product = (self.users(user) * self.items(item)).sum(-1)
        biases: Tensor = self.user_bias(user).squeeze(-1) + self.item_bias(item).squeeze(-1)
        return product + biases + self.mean


class TwoTower(nn.Module):
    """Both vectors as the answer; a BatchNorm before the first layer and after each."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.ModuleList([nn.Embedding(size, 6) for size in (60, 30, 20)])
        self.items = nn.ModuleList([nn.Embedding(size, 6) for size in (80, 25)])
        self.norm = nn.BatchNorm1d(18)
        self.user_tower, self.item_tower = tower(18, 24, 16, 8, norm=True), tower(12, 24, 8, norm=True)

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        u = self.norm(torch.cat([table(user[:, i]) for i, table in enumerate(self.users)], 1))
        v = torch.cat([table(item[:, i]) for i, table in enumerate(self.items)], 1)
        return F.normalize(self.user_tower(u), dim=1), F.normalize(self.item_tower(v), dim=1)


class Bags(nn.Module):
    """Watched videos as values and offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.watched = nn.EmbeddingBag(40, 8, mode="mean")
        self.country = nn.Embedding(10, 4)
        self.tower = tower(12, 16, 8)

    def forward(self, values: Tensor, offsets: Tensor, country: Tensor) -> Tensor:
        vector: Tensor = self.tower(torch.cat([self.watched(values, offsets), self.country(country)], dim=1))
        return vector


class Weighted(nn.Module):
    """Bags of 32-bit ids with weights and padding, given by their bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.tags = nn.EmbeddingBag(40, 8, mode="sum", padding_idx=0, include_last_offset=True)
        self.tower = tower(8, 16, 1)

    def forward(self, tags: Tensor, bounds: Tensor, weights: Tensor) -> Tensor:
        score: Tensor = self.tower(self.tags(tags, bounds, weights.relu()))
        return score.squeeze(1)


class Picture(nn.Module):
    """A small convolutional network beside an id."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.brand = nn.Embedding(12, 4)
        self.head = nn.Linear(20, 8)

    def forward(self, image: Tensor, brand: Tensor) -> Tensor:
        vector: Tensor = self.head(torch.cat([self.features(image).flatten(1), self.brand(brand)], 1))
        return vector


class Words(nn.Module):
    """A BERT-style encoder with a mask, pooled by mean."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(60, 16, padding_idx=0), nn.Embedding(10, 16)
        self.norm = nn.LayerNorm(16)
        self.layers = nn.ModuleList([nn.ModuleDict({
            "qkv": nn.Linear(16, 48), "out": nn.Linear(16, 16), "a": nn.LayerNorm(16),
            "up": nn.Linear(16, 32), "down": nn.Linear(32, 16), "b": nn.LayerNorm(16),
        }) for _ in range(2)])  # fmt: skip

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        n, t = input_ids.shape
        x = self.norm(self.words(input_ids) + self.positions(torch.arange(t)))
        bias = (1.0 - attention_mask[:, None, None, :].float()) * -1e4
        for layer in self.layers:
            q, k, v = layer["qkv"](x).view(n, t, 3, 2, 8).permute(2, 0, 3, 1, 4)
            weights = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5 + bias, -1)
            x = layer["a"](x + layer["out"]((weights @ v).transpose(1, 2).reshape(n, t, 16)))
            x = layer["b"](x + layer["down"](F.gelu(layer["up"](x))))
        mask = attention_mask.unsqueeze(-1).float()
        return (x * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


class Scored(NamedTuple):
    """A named answer."""

    score: Tensor
    vector: Tensor


class Shared(nn.Module):
    """Two features that read one table, a tower that is also an output, a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(40, 8)
        self.target = nn.Embedding(40, 8)
        self.target.weight = self.source.weight
        self.squash = nn.Sequential(
            nn.Linear(16, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Linear(12, 12), nn.Linear(12, 4)
        )

    def forward(self, source: Tensor, target: Tensor) -> Scored:
        vector = self.squash(torch.cat([self.source(source), self.target(target)], 1))
        return Scored(vector.norm(dim=1), vector)


def _words(n: int, r: torch.Generator) -> dict[str, Tensor]:
    mask = (torch.arange(10) < torch.randint(1, 11, (n, 1), generator=r)).long()
    return {"input_ids": ids(r, n, 10, size=60, low=1) * mask, "attention_mask": mask}


def _bags(n: int, r: torch.Generator) -> tuple[Tensor, ...]:
    lengths = torch.randint(0, 5, (n,), generator=r)
    return ids(r, int(lengths.sum())), lengths.cumsum(0) - lengths, ids(r, n, size=10)


def _weighted(n: int, r: torch.Generator) -> tuple[Tensor, ...]:
    bounds = torch.cat([torch.zeros(1), torch.randint(0, 5, (n,), generator=r).cumsum(0)]).int()
    total = int(bounds[-1])
    return ids(r, total).int(), bounds, torch.randn(total, generator=r)


def _pairs(n: int, r: torch.Generator) -> tuple[Tensor, Tensor]:
    users = torch.stack([ids(r, n, size=size) for size in (60, 30, 20)], 1)
    return users, torch.stack([ids(r, n, size=size) for size in (80, 25)], 1)


ENTRIES = (
    Entry("factors", Factors, lambda n, r: (ids(r, n), ids(r, n, size=50)), request=("user",)),
    Entry("two_tower", TwoTower, _pairs, request=("user",)),
    Entry("bags", Bags, _bags, request=("country",)),
    Entry("weighted", Weighted, _weighted),
    Entry(
        "picture",
        Picture,
        lambda n, r: (torch.randn(n, 3, 12, 12, generator=r), ids(r, n, size=12)),
        request=("brand",),
    ),
    Entry("words", Words, _words),
    Entry("shared", Shared, lambda n, r: (ids(r, n), ids(r, n)), request=("source",)),
)
