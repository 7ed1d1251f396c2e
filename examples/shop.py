"""The online retail lines: cleaned, encoded, and as what customers had bought before they were shown something."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from sklearn.decomposition import TruncatedSVD
from torch import Tensor

DATA = Path(__file__).parent / "data" / "online_retail_lines.csv.gz"
# Articles of a history, rows that articles share which training has not seen, numbers of an article's vector.
LAST, SPARE, WIDTH = 20, 64, 32


def cleaned() -> pd.DataFrame:
    """One line for each article of each basket, oldest first, with its week."""
    raw = pd.read_csv(DATA).query("user > 0")  # the others have no customer to learn about
    # Noise: what was sent back whole was no purchase.
    returned = pd.MultiIndex.from_frame(raw[raw.cancelled == 1][["user", "item", "quantity"]].abs())
    kept = raw[(raw.cancelled == 0) & (raw.quantity > 0) & (raw.price > 0)]
    kept = kept[~pd.MultiIndex.from_frame(kept[["user", "item", "quantity"]]).isin(returned)]
    # Duplicates: several lines of one article in one basket are one purchase.
    merged = {"minute": "min", "quantity": "sum", "price": "median"}
    lines = kept.groupby(["basket", "user", "item"], as_index=False).agg(merged)
    quantity = lines.quantity.clip(upper=lines.quantity.quantile(0.99))  # Outliers: some buy for their shops.
    return lines.assign(week=lines.minute // 10_080, quantity=quantity).sort_values("minute", kind="stable")


@dataclass
class Shop:
    """What the shop knows: the rows of its articles, their prices and sales, and what each customer bought last."""

    known: dict[int, int] = field(default_factory=dict)
    price: Tensor = field(default_factory=lambda: torch.zeros(1 + SPARE))
    sold: Tensor = field(default_factory=lambda: torch.ones(1 + SPARE))
    bought: dict[int, list[int]] = field(default_factory=dict)

    def learn(self, lines: pd.DataFrame) -> None:
        """Takes in the articles of these lines that it does not know, with their prices, behind those it knows."""
        prices = np.log1p(lines.groupby("item").price.median()) - 1
        new = [item for item in prices.index if item not in self.known]
        self.known |= {item: place for place, item in enumerate(new, len(self.price))}
        self.price = torch.cat([self.price, torch.tensor(prices[new].to_numpy(dtype=np.float32))])
        self.sold = torch.cat([self.sold, torch.ones(len(new))])

    def number(self, item: int) -> int:
        """The row of an article: 0 is none, those that training has not seen share some."""
        return self.known.get(item, 1 + hash(item) % SPARE)

    def factors(self, lines: pd.DataFrame) -> Tensor:
        """Vectors of the articles by who bought them: truncated SVD of customers times articles, (M, WIDTH)."""
        rows, columns = lines.user.to_numpy(), np.array([self.number(item) for item in lines.item])
        counts = coo_array((np.log1p(lines.quantity), (rows, columns)), (rows.max() + 1, len(self.price)))
        svd = TruncatedSVD(WIDTH, random_state=0).fit(counts)
        return torch.tensor(svd.components_.T * svd.singular_values_ / 100, dtype=torch.float32)

    def features(self, items: Tensor) -> Tensor:
        """Price and how well it sells, (..., 2)."""
        return torch.stack([self.price[items], torch.log1p(self.sold[items]) / 5], -1)

    def history(self, user: int) -> Tensor:
        """What a customer bought last, 0 in front where that is little, (LAST,)."""
        return torch.tensor(([0] * LAST + self.bought.get(user, []))[-LAST:])

    def wanted(self, week: pd.DataFrame) -> list[tuple[Tensor, Tensor]]:
        """Of each customer of a week, what they had bought last before it, and what they buy in it."""
        items = week.groupby("user").item.unique().items()
        return [(self.history(user), torch.tensor([*map(self.number, some)])) for user, some in items]

    def note(self, week: pd.DataFrame) -> None:
        """Notes what was bought in a week; half of what sold is forgotten in some ten."""
        items = [self.number(item) for item in week.item]
        self.sold = 0.93 * self.sold + torch.bincount(torch.tensor(items), minlength=len(self.sold))
        for user, item in zip(week.user, items, strict=True):
            self.bought.setdefault(user, []).append(item)
