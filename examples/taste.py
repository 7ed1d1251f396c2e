"""What a customer may like next: a small ranker over what they bought last, and how it learns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from shop import SPARE, WIDTH
from torch import Tensor, nn

from fastrec.measure import Evaluator, evaluator

SHOWN = 10
"""How many articles a customer is shown."""


class Taste(nn.Module):
    """What a customer bought last and an article -> the chance that they buy it."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.items = nn.Embedding.from_pretrained(factors.clone(), freeze=False)
        self.popular = nn.Embedding(len(factors), 1)
        nn.init.zeros_(self.popular.weight)
        self.tower = nn.Sequential(
            nn.Linear(3 * WIDTH + 3, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Rows for articles that are new, in the middle of what there is."""
        for name in ("items", "popular"):
            old = getattr(self, name).weight
            fresh = old[1 + SPARE :].mean(0).expand(count - len(old), -1)
            setattr(self, name, nn.Embedding.from_pretrained(torch.cat([old, fresh]), freeze=False))

    def forward(self, history: Tensor, item: Tensor, about: Tensor) -> Tensor:
        """Histories (N, 20), articles (N,), price and sales (N, 2) -> chances (N,)."""
        real = (history > 0).unsqueeze(2)
        taste = (self.items(history) * real).sum(1) / real.sum(1).clamp(min=1)
        shown = self.items(item)
        again = (history == item.unsqueeze(1)).any(1, keepdim=True).float()
        joined = torch.cat([taste, shown, taste * shown, about, again], 1)
        return torch.sigmoid(self.tower(joined) + self.popular(item)).squeeze(1)


def learn(model: nn.Module, part: Sequence[Tensor], rate: float) -> None:
    """One pass of Adam on the log loss."""
    *inputs, labels = part
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=rate, weight_decay=1e-4)
    for chosen in torch.randperm(len(labels)).split(512):
        loss = nn.functional.binary_cross_entropy(model(*[x[chosen] for x in inputs]), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()


def judged(part: Sequence[Tensor]) -> Evaluator:
    """The AUC on labelled rows."""
    *inputs, labels = part
    return evaluator(zip(*(x.split(1000) for x in inputs), strict=True), labels, ["auc"])


def quality(shown: Sequence[Tensor], bought: Sequence[Tensor]) -> str:
    """NDCG@10, and how many customers buy something that they were shown."""
    hits = torch.stack([torch.isin(*both).float() for both in zip(shown, bought, strict=True)])
    discounts = 1 / torch.arange(2, SHOWN + 2).log2()
    most = torch.stack([discounts[: len(items)].sum() for items in bought])
    return f"NDCG@10 {float(((hits * discounts).sum(1) / most).mean()):.4f}, {float(hits.amax(1).mean()):.1%} buy of it"
