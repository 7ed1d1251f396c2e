"""Every text of docs/integrations.md, run."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import fastrec
from fastrec.transforms import PcaTransform
from tests import pages

from .conftest import Saved, batch


@pytest.fixture
def here(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> Saved:
    """The folder `ranker` is where the texts look for it."""
    monkeypatch.chdir(saved.folder.parent)
    return saved


def test_mlflow(mlflow: Any, saved: Saved) -> None:
    names = pages.run("docs/integrations.md", "import mlflow", fast=saved.fast)
    assert names["again"](**batch(9)).equal(saved.fast(**batch(9)))


def test_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 94)) @ np.diag(1 / np.arange(1, 95))
    names = pages.run(
        "docs/integrations.md", "ColumnTransformer", features=features, clicked=features[:, 0] > 0
    )
    assert names["ranker"].score(features, features[:, 0] > 0) > 0.9
    expected = PcaTransform(energy=0.95).fit(features[:, :64])
    np.testing.assert_array_equal(names["pca"].components_, expected.components_)


def test_litserve(here: Saved) -> None:
    pytest.importorskip("litserve", reason="litserve is not installed")
    api = pages.run("docs/integrations.md", "LitAPI")["RankerAPI"]()
    api.setup("cpu")
    # As JSON has it: whole prices are no floats.
    request = {"user": [1, 2], "item": [3, 4], "price": [5, 6]}
    answer = api.encode_response(api.predict(api.decode_request(request)))
    expected = here.fast(torch.tensor([1, 2]), torch.tensor([3, 4]), torch.tensor([5.0, 6.0]))
    assert answer == {"scores": expected.tolist()}
    with pytest.raises(Exception, match=r"'user'.*50") as caught:
        api.predict(api.decode_request({**request, "user": [1, 50]}))
    assert caught.value.status_code == 422  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 4])
def test_two_hundred_await_the_bits_that_calls_give(saved: Saved, workers: int) -> None:
    names = pages.run("docs/integrations.md", "asyncio", fast=saved.fast)
    names["calls"] = ThreadPoolExecutor(workers)
    batches = [batch(1 + seed % 20, seed) for seed in range(200)]

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(names["score"](one) for one in batches))

    with names["calls"]:
        answers = asyncio.run(all_of_them())
    assert all(answer.equal(saved.fast(**one)) for answer, one in zip(answers, batches, strict=True))


def test_the_loop_goes_on_while_a_call_is_made(saved: Saved) -> None:
    begun, ticked, ticks = threading.Event(), threading.Event(), 0

    def held(**features: Any) -> Any:
        """A call that cannot end before the loop has ticked."""
        begun.set()
        assert ticked.wait(60), "the loop stood still"
        return saved.fast(**features)

    async def tick() -> None:
        nonlocal ticks
        while not begun.is_set() or ticks < 100:
            ticks += begun.is_set()
            await asyncio.sleep(0)
        ticked.set()

    names = pages.run("docs/integrations.md", "asyncio", fast=held)

    async def both() -> Any:
        return (await asyncio.gather(names["score"](batch(8)), tick()))[0]

    with names["calls"]:
        answer = asyncio.run(both())
    assert ticks == 100 and answer.equal(saved.fast(**batch(8)))


def test_errors_come_back_through_the_pool(saved: Saved) -> None:
    names = pages.run("docs/integrations.md", "asyncio", fast=saved.fast)
    with names["calls"], pytest.raises(fastrec.IdOutOfRangeError):
        asyncio.run(names["score"]({**batch(2), "user": torch.tensor([1, 50])}))
