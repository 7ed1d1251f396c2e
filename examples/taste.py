"""What a customer may like next: a small ranker over what they bought last, and how it learns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from shop import SPARE, WIDTH
from told import ndcg
from torch import Tensor, nn
from towers import averaged, passed

from fastrec.measure import Evaluator, evaluator

SHOWN = 10
"""How many articles a customer is shown."""


class Articles(nn.Module):
    """What holds a row for each article, and for those that share some."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.items = nn.Embedding.from_pretrained(factors.clone(), freeze=False)

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Rows for articles that are new, in the middle of what there is."""
        for name, table in [*self.named_children()]:
            if isinstance(table, nn.Embedding):
                fresh = table.weight[1 + SPARE :].mean(0).expand(count - len(table.weight), -1)
                grown = torch.cat([table.weight, fresh])
                setattr(self, name, nn.Embedding.from_pretrained(grown, freeze=False))


class Taste(Articles):
    """What a customer bought last, on the whole or by `attention` to what is shown, and an article -> the chance that they buy it."""

    def __init__(self, factors: Tensor, attention: nn.Module | None = None) -> None:
        super().__init__(factors)
        self.attention = attention
        self.popular = nn.Embedding(len(factors), 1)
        nn.init.zeros_(self.popular.weight)
        self.tower = nn.Sequential(
            nn.Linear(3 * WIDTH + 3, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, history: Tensor, item: Tensor, about: Tensor) -> Tensor:
        """Histories (N, 20), articles (N,), price and sales (N, 2) -> chances (N,)."""
        bought, shown = self.items(history), self.items(item)
        if self.attention is None:
            taste = averaged(bought, history)
        else:
            taste = self.attention(bought, shown, history == 0)
        again = (history == item.unsqueeze(1)).any(1, keepdim=True).float()
        joined = torch.cat([taste, shown, taste * shown, about, again], 1)
        return torch.sigmoid(self.tower(joined) + self.popular(item)).squeeze(1)


def learn(model: nn.Module, part: Sequence[Tensor], rate: float) -> None:
    """One pass of Adam on the log loss."""
    *inputs, labels = part

    def loss(chosen: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy(model(*[x[chosen] for x in inputs]), labels[chosen])

    passed(model, loss, len(labels), rate)


def judged(part: Sequence[Tensor]) -> Evaluator:
    """The AUC on labelled rows."""
    *inputs, labels = part
    return evaluator(zip(*(x.split(1000) for x in inputs), strict=True), labels, ["auc"])


def quality(shown: Sequence[Tensor], bought: Sequence[Tensor]) -> str:
    """NDCG@10, and how many customers buy something that they were shown."""
    some = [bool(torch.isin(*both).any()) for both in zip(shown, bought, strict=True)]
    return f"NDCG@10 {ndcg(shown, bought):.4f}, {sum(some) / len(some):.1%} buy of it"
