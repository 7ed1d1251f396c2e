"""A compressed model, saved, and a batch, as the texts of docs/integrations.md have them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrec import CompressedModel, Fuse, compress, pipeline
from fastrec.backends import Eager


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """torch with one thread, as recipes ask for, and with as many as before at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Ranker(torch.nn.Module):
    """A user, an item and a price."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = torch.nn.Embedding(50, 8), torch.nn.Embedding(90, 8)
        self.tower = torch.nn.Sequential(torch.nn.Linear(17, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

    def forward(self, user: Tensor, item: Tensor, price: Tensor) -> Tensor:
        return self.tower(torch.cat([self.users(user), self.items(item), price[:, None]], 1)).squeeze(1)


@dataclass(frozen=True)
class Saved:
    """A compressed model, which has no home, and the folder that a copy of it was saved in."""

    fast: CompressedModel
    folder: Path


def batch(rows: int, seed: int = 0) -> dict[str, Tensor]:
    """What the ranker takes."""
    rng = torch.Generator().manual_seed(seed)
    return {
        "user": torch.randint(50, (rows,), generator=rng),
        "item": torch.randint(90, (rows,), generator=rng),
        "price": torch.randn(rows, generator=rng),
    }


@pytest.fixture(scope="package")
def saved(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """The ranker, compressed, whatever the clock says, and saved as `ranker`."""
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        patch.setattr(pipeline, "share", lambda *_: 0.05)
        patch.setattr(pipeline, "worth_it", lambda result: True)
        fast = compress(
            Ranker().eval(), batch(20), recipe=Fuse(), backends=[Eager()], batch_sizes=(1, 16), seconds=2, progress=False
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("saved") / "ranker"
    fast.save(folder)
    return Saved(fast, folder)


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """MLflow with a store of its own, which tells nobody."""
    pytest.importorskip("matplotlib", reason="matplotlib draws the page that is logged, and is not installed")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    found = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    before = found.get_tracking_uri()
    found.set_tracking_uri((tmp_path / "runs").as_uri())
    yield found
    while found.active_run():
        found.end_run()
    found.set_tracking_uri(before)
