"""One small ranker, compressed once for each backend, that promises are tried on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fastrec import CompressedModel, compress
from fastrec.backends import Eager, OnnxRuntime

FIELDS = 26


class Ranker(nn.Module):
    """Twenty-six ids, five numbers, one score."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(40 + i, 4) for i in range(FIELDS))
        self.tower = nn.Sequential(
            nn.Linear(4 * FIELDS + 5, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.9), nn.Linear(32, 1)
        )

    def forward(self, dense: Tensor, *ids: Tensor) -> Tensor:
        rows = [table(column) for table, column in zip(self.tables, ids, strict=True)]
        return self.tower(torch.cat([*rows, dense], 1)).squeeze(1)


def batch_of(rows: int, seed: int = 0) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    ids = (torch.randint(40 + i, (rows,), generator=rng) for i in range(FIELDS))
    return (torch.randn(rows, 5, generator=rng), *ids)


@pytest.fixture(scope="session")
def ranker() -> Ranker:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Ranker()
        model(*batch_of(256, 1))  # the normalisation has seen something
    return model.eval()


@pytest.fixture(scope="module", params=["eager", "onnxruntime"])
def fast(request: pytest.FixtureRequest, ranker: Ranker, served_anyway: None) -> Iterator[CompressedModel]:
    """The ranker on one backend, which serves every number of rows, compressed with a batch of one row."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    backend = Eager() if request.param == "eager" else OnnxRuntime()
    made = compress(ranker, batch_of(1), batch_sizes=(1, 64), seconds=3, backends=backend, progress=False)
    assert made.plan is not None and all(name.startswith(request.param) for name in made.plan.names)
    yield made
    torch.set_num_threads(threads)
