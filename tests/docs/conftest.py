"""The names that pages take for granted: a ranker of users and items, its traffic, and what was made of it."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec.backends import Eager
from fastrec.measure import evaluator, popularity
from fastrec.techniques import Fuse, QuantizeTables

from ..pages import ROOT

USERS, ITEMS, WIDTH = 400, 20_000, 16


class Ranker(nn.Module):
    """user (N,) and item (N,), ids -> probability (N,). The items' table is large enough to be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, WIDTH), nn.Embedding(ITEMS, WIDTH)
        self.tower = nn.Sequential(nn.Linear(2 * WIDTH, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        rows = torch.cat([self.users(user), self.items(item)], 1)
        return torch.sigmoid(4 * self.tower(rows)).squeeze(1)


def rows(count: int, seed: int) -> dict[str, Tensor]:
    """Some users and items."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(size, (count,), generator=draw)
        for name, size in (("user", USERS), ("item", ITEMS))
    }


@pytest.fixture(scope="session")
def fast() -> fastrec.CompressedModel:
    """The ranker, compressed exactly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Ranker().eval()
    return fastrec.compress(
        model, rows(64, 0), backends=Eager(), batch_sizes=(64,), seconds=2, progress=False
    )


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[fastrec.CompressedModel]:
    """What a page compresses from now on: in seconds, by torch at two numbers of rows unless it says otherwise."""
    compress, found = fastrec.compress, []

    def short(*args: Any, **settings: Any) -> fastrec.CompressedModel:
        usual = {"backends": Eager(), "batch_sizes": (1, 64)}
        found.append(compress(*args, **{**usual, **settings, "seconds": 3.0, "progress": False}))
        return found[-1]

    monkeypatch.setattr(fastrec, "compress", short)
    monkeypatch.setattr(fastrec, "TopK", partial(fastrec.TopK, seconds=0.02))
    return found


@pytest.fixture
def usual(
    fast: fastrec.CompressedModel,
    made: list[Any],
    served_anyway: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """What a page need not say where it has it from; it runs in a folder of its own, where `ranker` was saved."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    copy.copy(fast).save("ranker")
    model, held_out, known = fast.original.model, [rows(500, seed) for seed in range(1, 9)], rows(4000, 9)
    users, items = (torch.cat([batch[name] for batch in held_out]) for name in ("user", "item"))
    with torch.no_grad():
        labels = torch.bernoulli(model(users, items), generator=torch.Generator().manual_seed(0))
    batch = rows(64, 0)
    return {
        "__name__": "page", "torch": torch, "np": np, "fastrec": fastrec, "compress": fastrec.compress, "Budget": fastrec.Budget,
        "model": model, "fast": fast, "recipe": [Fuse(), QuantizeTables()],
        # What it is asked, by many users and by one.
        "batch": batch, "batches": [rows(256, seed) for seed in range(10, 14)],
        "user": torch.full((64,), 7), "item": batch["item"], "catalogue": torch.arange(ITEMS), "rows": [3, 1],
        # Labelled rows, and the traffic it was trained on.
        "held_out": held_out, "labels": labels, "evaluate": evaluator(held_out, labels, ["auc"]),
        "held_out_users": users, "held_out_items": items, "held_out_countries": users % 3,
        "train_users": known["user"], "train_items": known["item"], "named": popularity(items, known["item"]),
        # Vectors of items, of users, and what these have bought.
        "items": model.items.weight.detach(), "users": model.users.weight.detach()[:5],
        "some_users": model.users.weight.detach(), "bought": [[3, 1], [], [2], [], []],
    }  # fmt: skip
