"""Saved models and tables of rows, for all tests of scoring."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrec import CompressedModel, Fuse, compress, pipeline
from fastrec.backends import OnnxRuntime

USERS, ITEMS = 50, 90


class Ranker(nn.Module):
    """Packed ids, a history and a price; two answers, one of them two numbers for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, 8)
        self.tower = nn.Sequential(nn.Linear(25, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, ids: Tensor, history: Tensor, price: Tensor) -> dict[str, Tensor]:
        fields = [self.users(ids[:, 0]), self.items(ids[:, 1]), self.items(history).mean(1), price[:, None]]
        found = self.tower(torch.cat(fields, 1))
        return {"ctr": torch.sigmoid(found[:, 0]), "value": found[:, 1:]}


class ByRequest(nn.Module):
    """A user with a history against items."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, 8)
        self.tower = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, user: Tensor, history: Tensor, item: Tensor) -> Tensor:
        fields = [self.users(user), self.items(history).mean(1), self.items(item)]
        return self.tower(torch.cat(fields, 1)).squeeze(1)


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """torch with one thread, as in workers, and with as many as before at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def importable(one_thread: None) -> Iterator[None]:
    """Workers that are started now find these tests, and the library beside them."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        yield


def compressed(model: nn.Module, batch: Any, **settings: Any) -> CompressedModel:
    """A compressed model that is served by a session, whatever the clock says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "share", lambda *_: 0.05)
        patch.setattr(pipeline, "worth_it", lambda result: True)
        # What was asked for serves, and not what is exact beside it.
        patch.setattr(
            pipeline, "preferred", lambda trials, *first: min((one.session for one in trials), key=len)
        )
        settings = {
            "recipe": Fuse(),
            "backends": [OnnxRuntime()],
            "batch_sizes": (16,),
            "seconds": 1,
        } | settings
        return compress(model, batch, progress=False, **settings)


@pytest.fixture(scope="package")
def make(one_thread: None) -> Callable[..., CompressedModel]:
    """`compressed`."""
    return compressed


@pytest.fixture(scope="package")
def folder(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of a ranker."""
    torch.manual_seed(0)
    found = tmp_path_factory.mktemp("saved") / "ranker"
    given = tensors(rows(16))
    compressed(Ranker().eval(), given).save(found)
    return found


@pytest.fixture(scope="package")
def by_request(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of one that is asked for one request."""
    torch.manual_seed(0)
    found = tmp_path_factory.mktemp("saved") / "by_request"
    table = {name: torch.as_tensor(x) for name, x in requests(1, 16).items()}
    compressed(ByRequest().eval(), table, request_features=["user", "history"]).save(found)
    return found


def rows(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows for the ranker, numbered."""
    rng = np.random.default_rng(seed)
    return {
        "row": np.arange(n),
        "ids": np.stack([rng.integers(0, USERS, n), rng.integers(0, ITEMS, n)], 1),
        "history": rng.integers(0, ITEMS, (n, 4)),
        "price": rng.normal(size=n).astype(np.float32),
    }


def requests(users: int, items: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Every user against as many items."""
    rng = np.random.default_rng(seed)
    user = rng.permutation(USERS)[:users]
    return {
        "user": user.repeat(items),
        "history": rng.integers(0, ITEMS, (users, 4)).repeat(items, 0),
        "item": rng.integers(0, ITEMS, users * items),
    }


def tensors(table: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """As the ranker takes rows."""
    return {name: torch.as_tensor(x) for name, x in table.items() if name != "row"}


def spoilt(table: dict[str, np.ndarray]) -> dict[str, Any]:
    """The same rows as objects, some of them bad: an id beyond its table, a history of another length, no price, NaN, a text."""
    made: dict[str, Any] = {name: list(x) for name, x in table.items()}
    made["ids"][3] = np.array([USERS, 0])
    made["history"][5] = made["history"][5][:3]
    made["price"][8] = None
    made["price"][11] = float("nan")
    made["ids"][13] = np.array([0, -1])
    made["history"][13] = None
    made["history"][17] = ["a", "b", "c", "d"]
    return made


BAD = {3: "ids", 5: "history", 8: "price", 11: "price", 13: "history", 17: "history"}
"""The rows that `spoilt` spoils: of row 13, what is seen first."""
