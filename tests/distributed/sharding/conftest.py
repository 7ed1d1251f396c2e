"""A compressed model, its folder, and groups of processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastrec import Budget, CompressedModel, compress
from fastrec.backends import Eager
from fastrec.techniques import QuantizeTables

from .models import Ranker, batch
from .ranks import Ranks


@pytest.fixture(scope="session")
def fast() -> CompressedModel:
    """The ranker with two of its tables in 8 bits."""
    torch.manual_seed(0)
    model = Ranker().eval()
    # What fits alone serves, whatever the clock says.
    made = compress(
        model, batch(64, 99), recipe=QuantizeTables(least_bytes=0, only=("model.users.weight", "model.items.weight")),
        budget=Budget(bytes=60_000), calibration=[batch(64, seed) for seed in range(4)], backends=Eager(), batch_sizes=(64,),
        seconds=1, progress=False,
    )  # fmt: skip
    assert not made.exact
    return made


@pytest.fixture(scope="session")
def folder(fast: CompressedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is saved."""
    where = tmp_path_factory.mktemp("saved") / "ranker"
    fast.save(where)
    return where


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Four processes."""
    made = Ranks(4, tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()
