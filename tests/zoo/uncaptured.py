"""Models whose code reads values as it runs: linear maps in all the ways modules hold them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .base import Entry, ids, tower


def seen(x: Tensor) -> bool:
    """True of ids, which no recorder can know."""
    return bool(x.sum().item() >= 0)


class Looping(nn.Module):
    """One layer called again and again, as often as a value says; answers with a number that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.step = nn.Embedding(40, 24), nn.Linear(24, 24)
        self.rounds: Tensor
        self.register_buffer("rounds", torch.tensor(3))
        self.head = tower(25, 16, 1)

    def forward(self, item: Tensor, price: Tensor) -> dict[str, object]:
        x = self.table(item)
        for _ in range(int(self.rounds.item()) if seen(item) else 1):
            x = x + torch.tanh(self.step(x))
        logits = self.head(torch.cat([x, price.unsqueeze(1)], 1)).squeeze(1)
        return {"logits": logits, "state": (x, "last"), "mean": float(logits.sum().item())}


class Doubled(nn.Linear):
    """A linear map that is something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Held(nn.Module):
    """Linear maps under two names, in a plain list, tied, hooked, parametrized, of a class of its own, and read by others."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(40, 16)
        self.first = nn.Linear(16, 16)
        self.again = self.first
        self.listed = nn.Linear(16, 16)
        self.steps = [(self.listed, torch.tanh), (self.first, torch.relu)]
        self.twin, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
        self.other.weight = self.twin.weight
        self.out = nn.Linear(16, 40)
        self.out.weight = self.items.weight
        self.read = nn.Linear(16, 16)
        self.doubled = Doubled(16, 16)
        self.hooked = nn.Linear(16, 16)
        self.hooked.register_forward_hook(_halved)
        self.normed = parametrizations.weight_norm(nn.Linear(16, 16))
        self.patched = nn.Linear(16, 16)

    def forward(self, history: Tensor) -> tuple[Tensor, Tensor]:
        x = self.items(history).sum(1) / 2
        if seen(history):
            for layer, act in self.steps:
                x = act(layer(x))
        x = torch.tanh(self.twin(x)) + self.other(self.again(x))
        x = torch.tanh(F.linear(x, self.read.weight) + self.read(x) + self.doubled(x))
        x = torch.tanh(self.hooked(x) + self.normed(x) + self.patched.forward(x))
        return self.out(x), F.linear(x, self.items.weight)


def _halved(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output / 2


ENTRIES = (
    Entry(
        "looping",
        Looping,
        lambda n, r: {"item": ids(r, n), "price": torch.rand(n, generator=r)},
        capturable=False,
    ),
    Entry("held", Held, lambda n, r: ids(r, n, 5), capturable=False),
)
