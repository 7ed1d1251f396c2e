"""Batches and models as other libraries have them, and models that cannot be recorded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import Entry, ids, tower


class Interaction:
    """Columns by name, in an attribute of its own."""

    def __init__(self, interaction: dict[str, Tensor]) -> None:
        self.interaction = interaction

    def __getitem__(self, name: str) -> Tensor:
        return self.interaction[name]

    def __len__(self) -> int:
        return len(next(iter(self.interaction.values())))


class Predicted(nn.Module):
    """Serves through `predict`; `forward` is for training."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(40, 8), nn.Embedding(40, 8)
        self.mlp = tower(16, 16, 1, norm=True)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        logit: Tensor = self.mlp(torch.cat([self.users(user), self.items(item)], -1))
        return logit.squeeze(-1)

    def predict(self, interaction: Interaction) -> Tensor:
        return torch.sigmoid(self.forward(interaction["user_id"], interaction["item_id"]))


class Keyed:
    """Values of several keys, cut by lengths."""

    def __init__(self, keys: list[str], values: Tensor, lengths: Tensor) -> None:
        self._keys, self._values, self._lengths = keys, values, lengths

    def keys(self) -> list[str]:
        return self._keys

    def values(self) -> Tensor:
        return self._values

    def lengths(self) -> Tensor:
        return self._lengths


class Jagged(nn.Module):
    """Pools the values of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(40, 8, mode="sum")
        self.head = tower(16, 12, 1)

    def forward(self, features: Keyed) -> Tensor:
        lengths = features.lengths()
        pooled = self.table(features.values(), lengths.cumsum(0) - lengths)
        first, second = pooled.view(len(features.keys()), -1, 8).unbind(0)
        score: Tensor = self.head(torch.cat([first, second], 1))
        return score.squeeze(1)


@dataclass
class Request:
    """A batch of nested containers."""

    user: dict[str, Tensor]
    items: list[Tensor]
    temperature: float = 2.0


@dataclass
class Answer:
    """An answer of nested containers."""

    scores: Tensor
    extras: dict[str, tuple[Tensor, str]]


class Nested(nn.Module):
    """Reads and answers in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(40, 8), nn.Embedding(40, 8)
        self.age = nn.Linear(1, 8)

    def forward(self, request: Request) -> Answer:
        u = self.user(request.user["id"]) + self.age(request.user["age"].unsqueeze(1))
        v = sum(self.item(x) for x in request.items)
        scores = (u * v).sum(1) / request.temperature
        return Answer(scores, {"user": (u, "vector")})


class Unreadable(nn.Module):
    """Branches and loops over the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 4)
        self.a, self.b = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table(x)
        answers = []
        for value, row in zip(x.tolist(), rows, strict=True):
            answers.append((self.a if value % 2 else self.b)(row))
        return torch.cat(answers) if answers else rows.sum(1)


class Shortcut(nn.Module):
    """Looks nothing up where no history has an item."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 4, padding_idx=0)
        self.head = nn.Linear(4, 1)

    def forward(self, history: Tensor) -> dict[str, Tensor]:
        pooled = torch.zeros(len(history), 4, dtype=self.head.weight.dtype)
        if history.sum().item() > 0:
            pooled = self.table(history).sum(1)
        return {"logits": self.head(pooled)}


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.sum(self.table(x), -1)


def _predicted(n: int, r: torch.Generator) -> Interaction:
    return Interaction({"user_id": ids(r, n), "item_id": ids(r, n)})


def _keyed(n: int, r: torch.Generator) -> Keyed:
    lengths = torch.randint(0, 4, (2 * n,), generator=r)
    return Keyed(["a", "b"], ids(r, int(lengths.sum())), lengths)


def _request(n: int, r: torch.Generator) -> Request:
    return Request({"id": ids(r, n), "age": torch.rand(n, generator=r)}, [ids(r, n), ids(r, n)])


ENTRIES = (
    Entry("predicted", Predicted, _predicted, "predict", request=("user_id",)),
    Entry("jagged", Jagged, _keyed),
    Entry("nested", Nested, _request, request=("request.user",)),
    Entry("unreadable", Unreadable, lambda n, r: ids(r, n), capturable=False),
    Entry("shortcut", Shortcut, lambda n, r: ids(r, n, 6), capturable=False),
    Entry("counting", Counting, lambda n, r: ids(r, n), capturable=False),
)
