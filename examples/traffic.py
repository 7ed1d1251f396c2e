"""What customers bought, and what they were shown, as rows to learn from."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from shop import LAST, Shop
from torch import Tensor

Wanted = list[tuple[Tensor, Tensor]]


def rows(shop: Shop, wanted: Wanted, rng: torch.Generator, each: int = 6) -> tuple[Tensor, ...]:
    """Up to `each` of the articles that a customer wanted, and as many drawn by what sells: features, labels last."""
    histories, items, labels = [torch.zeros(0, LAST, dtype=torch.long)], list[Tensor](), list[Tensor]()
    for history, bought in wanted:
        some = bought[torch.randperm(len(bought), generator=rng)[:each]]
        others = torch.multinomial(shop.sold**0.75, len(some), replacement=True, generator=rng)
        items += [some, others]
        labels += [torch.ones(len(some)), torch.isin(others, bought).float()]
        histories.append(history.expand(2 * len(some), -1))
    return _together(shop, histories, items, labels)


def feedback(shop: Shop, wanted: Wanted, shown: list[Tensor]) -> tuple[Tensor, ...]:
    """What was shown to each customer, and whether they bought it then: features, labels last."""
    histories = [history.expand(len(items), -1) for (history, _), items in zip(wanted, shown, strict=True)]
    labels = [torch.isin(items, bought).float() for (_, bought), items in zip(wanted, shown, strict=True)]
    return _together(shop, histories, shown, labels)


def batches(part: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The features of 16,384 labelled rows at the most, in batches, as a model takes them."""
    chosen = torch.randperm(len(part[0]), generator=torch.Generator().manual_seed(0))[:16_384].split(512)
    return [tuple(x[rows] for x in part[:-1]) for rows in chosen]


def taken_in(shop: Shop, lines: pd.DataFrame, rng: torch.Generator) -> list[Tensor]:
    """What is to be learned from some weeks, each as the shop was before it."""
    parts = []
    for _, week in lines.groupby("week"):
        parts.append(rows(shop, shop.wanted(week), rng))
        shop.note(week)
    return [torch.cat(several) for several in zip(*parts, strict=True)]


def _together(
    shop: Shop, histories: list[Tensor], items: list[Tensor], labels: list[Tensor]
) -> tuple[Tensor, ...]:
    shown = torch.cat(items)
    return torch.cat(histories), shown, shop.features(shown), torch.cat(labels)
