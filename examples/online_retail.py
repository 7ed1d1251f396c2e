"""Will a customer buy it? A ranker with attention over what they bought last: `python examples/online_retail.py`."""

from __future__ import annotations

import torch
from baskets import FIELDS, REQUEST, load
from bookings import quality
from hotel_bookings import train
from torch import Tensor, nn
from towers import Attention

import fastrec
from fastrec.render import terminal


class Attentive(nn.Module):
    """A deep interest network: each item bought last counts by how it bears on the item that is shown."""

    def __init__(self, sizes: list[int], width: int = 32) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.attention = Attention(width)
        layers: list[nn.Module] = []
        for before, after in (((len(sizes) + 1) * width, 200), (200, 80)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(0.3)]
        self.tower = nn.Sequential(*layers, nn.Linear(80, 1))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor, history: Tensor) -> Tensor:
        """The chance that the item is bought, (N,)."""
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        items = self.tables[FIELDS.index("item")]
        interest = self.attention(items(history), rows[FIELDS.index("item")], history == 0)
        return torch.sigmoid(self.tower(torch.cat([*rows, interest], 1))).squeeze(1)


def trained() -> tuple[Attentive, dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """The model after the training baskets, and the baskets of every split."""
    torch.manual_seed(0)
    parts, sizes = load()
    model = Attentive(sizes)
    train(model, parts["train"])
    return model.eval(), parts


def main() -> None:
    """Load, train, and compress for one customer who is shown many items."""
    model, parts = trained()
    ids, history, _ = (x[:100].clone() for x in parts["test"])
    ids[:, REQUEST["ids"]] = ids[0, REQUEST["ids"]]
    history[:] = history[0]
    fast = fastrec.compress(model, (ids, history), request_features=REQUEST)
    print(f"test, before: {quality(model, parts['test'])}")
    assert torch.allclose(fast(ids, history), model(ids, history), atol=1e-5)
    terminal(fast.report)


if __name__ == "__main__":
    main()
