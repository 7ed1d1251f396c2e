"""A ranker of two towers, that of articles with a small network of convolutions over their pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from album import SIDE
from shop import SPARE, WIDTH, Shop
from torch import Tensor, nn

from fastrec.measure import Evaluator, evaluator

Rows = tuple[Tensor, ...]


class Pictured(nn.Module):
    """What a customer bought last, and an article by its id, price, sales and picture -> the chance that they buy it."""

    def __init__(self, factors: Tensor, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.items = nn.Embedding.from_pretrained(factors.clone(), freeze=False)
        layers, before = list[nn.Module](), 3
        for stride, after in zip((1, 2, 2), channels, strict=True):
            conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            layers, before = [*layers, conv, nn.BatchNorm2d(after), nn.ReLU()], after
        self.eye = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.user = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 64))
        self.item = nn.Sequential(nn.Linear(before + WIDTH + 2, 128), nn.ReLU(), nn.Linear(128, 64))
        self.popular = nn.Linear(64, 1)

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Rows for articles that are new, in the middle of what there is: what tells them apart is their picture."""
        old = self.items.weight
        fresh = old[1 + SPARE :].mean(0).expand(count - len(old), -1)
        self.items = nn.Embedding.from_pretrained(torch.cat([old, fresh]), freeze=False)

    def forward(self, history: Tensor, item: Tensor, about: Tensor, picture: Tensor) -> Tensor:
        """Histories (N, 20), articles (N,), price and sales (N, 2), pictures (N, 3, S, S) in bytes -> chances (N,)."""
        real = (history > 0).unsqueeze(2)
        taste = self.user((self.items(history) * real).sum(1) / real.sum(1).clamp(min=1))
        looks = self.eye(picture.float() / 255)
        shown = self.item(torch.cat([looks, self.items(item), about], 1))
        return torch.sigmoid((taste * shown).sum(1) / 8 + self.popular(shown).squeeze(1))


def shelf(shop: Shop, pictures: dict[int, Tensor]) -> Tensor:
    """The pictures (M, 3, S, S) of all articles by their rows, which begin with those that several share: these are dark."""
    dark = torch.zeros(1 + SPARE, 3, SIDE, SIDE, dtype=torch.uint8)
    return torch.cat([dark, torch.stack([pictures[item] for item in shop.known])])


def seen(part: Sequence[Tensor], shown: Tensor) -> Rows:
    """Rows with the pictures of their articles, labels last."""
    history, item, about, label = part
    return history, item, about, shown[item], label


def judged(part: Rows) -> Evaluator:
    """AUC and log loss, with a call for each customer, whose rows are not independent of each other."""
    counts = part[0].unique_consecutive(dim=0, return_counts=True)[1]
    calls = zip(*(x.split(counts.tolist()) for x in part[:-1]), strict=True)
    customers = torch.arange(len(counts)).repeat_interleave(counts)
    return evaluator(calls, part[-1], ["auc", "logloss"], groups=customers)
