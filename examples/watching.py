"""What a user may like to watch: two towers over the vectors of texts, and how they learn, with what reads the texts or without."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from towers import among, averaged, passed

from fastrec.measure import Evaluator, evaluator

WIDTH = 64
"""Numbers of a vector."""
Part = Sequence[Tensor]
Read = Callable[[Tensor], Tensor]


class Films(nn.Module):
    """A user and a film, each as a vector, made of the vectors of texts; their product says how well they go together."""

    def __init__(self, texts: Tensor, users: int) -> None:
        super().__init__()
        width = texts.shape[1]
        self.texts = nn.Embedding.from_pretrained(torch.cat([torch.zeros(1, width), texts]))  # 0: no film
        self.known, self.users = nn.Embedding(1 + len(texts), WIDTH), nn.Embedding(users, WIDTH)
        self.taste = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, WIDTH))
        self.title = nn.Linear(width, WIDTH)
        for table in (self.known, self.users):  # who or what is new adds nothing of its own
            nn.init.zeros_(table.weight)

    def grow(self, texts: Tensor) -> None:
        """More films, known by their texts alone."""
        for table, rows in ((self.texts, texts), (self.known, torch.zeros(len(texts), WIDTH))):
            table.weight = nn.Parameter(torch.cat([table.weight.data, rows]), table.weight.requires_grad)

    def person(self, user: Tensor, liked: Tensor) -> Tensor:
        """Users (N,) and what they liked last (N, T) -> vectors (N, WIDTH)."""
        texts, known = (averaged(table(liked), liked) for table in (self.texts, self.known))
        return self.taste(texts) + known + self.users(user)

    def film(self, film: Tensor, texts: Tensor) -> Tensor:
        """Films (N,) and the vectors of their texts (N, D) -> vectors (N, WIDTH)."""
        return self.title(texts) + self.known(film)

    def forward(self, user: Tensor, liked: Tensor, film: Tensor) -> Tensor:
        """Users (N,), what they liked last (N, T) and films (N,) -> scores (N,)."""
        return (self.person(user, liked) * self.film(film, self.texts(film))).sum(1)


def learn(
    films: Films,
    part: Part,
    rate: float,
    tower: nn.Module | None = None,
    read: Read | None = None,
    others: Sequence[Tensor] = (),
    most: int | None = None,
) -> None:
    """A pass over likes: each film among all of its batch and `others`; with the tower, if texts are `read` by it."""
    user, liked, film = part
    often = torch.bincount(film, minlength=len(films.known.weight)).clamp(min=1).float()

    def loss(chosen: Tensor) -> Tensor:
        rows, place = torch.cat([film[chosen], *others]).unique(return_inverse=True)
        shown = films.film(rows, (read or films.texts)(rows))
        return among(films.person(user[chosen], liked[chosen]), shown, place[: len(chosen)], often[rows])

    passed(nn.ModuleList([films, *([tower] if tower else [])]), loss, len(film), rate, 256, most)


def judged(part: Part) -> tuple[list[Part], Evaluator]:
    """Batches of what was liked and, as often, of what another liked; and the AUC on them."""
    user, liked, film = part
    other = film[torch.randperm(len(film))]
    inputs = user.repeat(2), liked.repeat(2, 1), torch.cat([film, other])
    batches = [*zip(*(x.split(500) for x in inputs), strict=True)]
    return batches, evaluator(batches, torch.cat([torch.ones(len(film)), (other == film).float()]), ["auc"])
