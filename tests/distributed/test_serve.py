"""Requests of many callers, answered together by Ray Serve."""

from __future__ import annotations

import asyncio
import importlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec.backends import Eager
from fastrec.compressed import CompressedModel
from fastrec.distributed.serve import Replica, deployment, open_folder, served
from fastrec.errors import PackageMissing
from tests import pages

MERGING = {"way": "ragged, eager", "backends": [Eager()]}


class Ranker(nn.Module):
    """A user's tower, an item's row, and a layer of both."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 8), nn.Embedding(90, 8)
        self.tower = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.out = nn.Linear(16, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        score: Tensor = self.out(torch.cat([self.tower(self.users(user)), self.items(item)], 1).relu())
        return score.squeeze(1)


def request(seed: int) -> dict[str, Tensor]:
    """One user, given once, and some items."""
    rng = torch.Generator().manual_seed(seed)
    rows = 1 + seed % 9
    return {"user": torch.tensor([seed % 50]), "item": torch.randint(90, (rows,), generator=rng)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, served_anyway: None) -> tuple[CompressedModel, Path]:
    torch.manual_seed(0)
    batch = {"user": torch.arange(20), "item": torch.arange(20)}
    fast = fastrec.compress(
        Ranker().eval(), batch, request_features=["user"], backends=[Eager()], batch_sizes=(8,), seconds=2, progress=False
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("served") / "ranker"
    fast.save(folder)
    return fast, folder


@pytest.fixture(scope="module")
def serve() -> Iterator[Any]:
    """Ray Serve, of a cluster of its own, without a door to the network."""
    found = pytest.importorskip("ray.serve", reason="ray[serve] is not installed: it is heavy, and an extra")
    ray = importlib.import_module("ray")
    # A short name: sockets lie in it, whose paths may not be long.
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as home,
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_SERVE_LOG_TO_STDERR", "0")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False,
            logging_level="ERROR", _temp_dir=home,
        )  # fmt: skip
        try:
            found.start(proxy_location="Disabled")
            yield found
        finally:
            found.shutdown()
            ray.shutdown()


def test_a_folder_that_was_written_anew_is_refused(
    saved: tuple[CompressedModel, Path], tmp_path: Path
) -> None:
    with pytest.raises(fastrec.ArtifactError, match=r"another than was deployed.*Deploy it again"):
        open_folder(str(saved[1]), "0" * 64, (), MERGING)
    with pytest.raises(fastrec.ArtifactNotFoundError):
        deployment(tmp_path / "nothing")


@pytest.mark.parametrize(
    "setting", [{"max_batch_size": 0}, {"wait_ms": -1}, {"threads": "two"}, {"threads": True}]
)
def test_settings_out_of_range_are_refused(
    saved: tuple[CompressedModel, Path], setting: dict[str, Any]
) -> None:
    with pytest.raises(fastrec.InputError, match=next(iter(setting))):
        deployment(saved[1], **setting)


@pytest.mark.parametrize(
    ("merging", "words"),
    [
        ({"foo": 1}, r"no setting 'foo', it takes .*: at, backends, seconds, way$"),
        ({"way": "whole batch", 3: 1}, "no setting 3"),
        (["way"], "settings by name, .*got a list"),
        ("whole batch", "settings by name, .*got a str"),
    ],
)
def test_settings_of_merging_that_there_are_not_are_refused_at_once(
    saved: tuple[CompressedModel, Path], merging: Any, words: str
) -> None:
    with pytest.raises(fastrec.InputError, match=words):
        deployment(saved[1], merging=merging)


def test_without_ray_it_says_what_to_install(
    saved: tuple[CompressedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(PackageMissing, match=r"pip install 'fastrec\[ray\]'"):
        deployment(saved[1])


def test_a_replica_answers_by_one_call_and_is_well() -> None:
    asked: list[int] = []

    def opening() -> Callable[[Sequence[Any]], list[Any]]:
        return lambda requests: [asked.append(len(requests)) or torch.get_num_threads() for _ in requests]

    before = torch.get_num_threads()
    replica = Replica(opening, 1)
    assert asyncio.run(replica.together([{}, {}, {}])) == [1, 1, 1] and asked == [3, 3, 3]
    asyncio.run(replica.check_health())
    assert torch.get_num_threads() == before


def test_a_replica_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    monkeypatch.setattr("fastrec.distributed.serve._PATIENCE", 0.05)
    replica = Replica(lambda: lambda requests: [free.wait(60) for _ in requests], 1)

    async def hangs() -> list[Any]:
        call = asyncio.create_task(replica.together([{}]))
        await asyncio.sleep(0)  # the call takes the thread first
        with pytest.raises(TimeoutError):
            await replica.check_health()
        free.set()
        return await call

    assert asyncio.run(hangs()) == [True]
    asyncio.run(replica.check_health())


@pytest.mark.cluster
def test_every_caller_gets_its_own_answer(serve: Any, saved: tuple[CompressedModel, Path]) -> None:
    fast, folder = saved
    app = deployment(folder, merging=MERGING, max_batch_size=8, wait_ms=20)
    handle = serve.run(app, name="ranker", route_prefix=None)
    with ThreadPoolExecutor(16) as callers:
        answers = list(
            callers.map(lambda seed: handle.remote(request(seed)).result(timeout_s=60), range(200))
        )
    for seed, answer in enumerate(answers):
        torch.testing.assert_close(answer, fast(**request(seed)))
    serve.delete("ranker")


@pytest.mark.cluster
def test_a_bad_request_fails_alone(serve: Any, saved: tuple[CompressedModel, Path]) -> None:
    fast, folder = saved
    app = deployment(folder, merging=MERGING, max_batch_size=8, wait_ms=50)
    handle = serve.run(app, name="bad", route_prefix=None)
    waiting = [
        handle.remote(
            {"user": torch.tensor([50]), "item": torch.arange(3)} if seed % 4 == 0 else request(seed)
        )
        for seed in range(32)
    ]
    for seed, one in enumerate(waiting):
        if seed % 4:
            torch.testing.assert_close(one.result(timeout_s=60), fast(**request(seed)))
        else:
            with pytest.raises(fastrec.IdOutOfRangeError, match=r"'user'.*50"):
                one.result(timeout_s=60)
    serve.delete("bad")


@pytest.mark.cluster
def test_requests_that_wait_are_answered_by_one_call(serve: Any) -> None:
    def opening() -> Callable[[Sequence[Any]], list[Any]]:
        return lambda requests: [len(requests)] * len(requests)

    app = served(opening, max_batch_size=4, wait_ms=2000, threads=1, name="counting")
    handle = serve.run(app, name="counting", route_prefix=None)
    waiting = [handle.remote({}) for _ in range(8)]
    assert [one.result(timeout_s=60) for one in waiting] == [4] * 8
    serve.delete("counting")


def test_the_texts_about_merging(saved: tuple[CompressedModel, Path]) -> None:
    fast, _ = saved
    given = {"first": request(1), "second": request(2), "third": request(3)}
    names = pages.run("docs/serving.md", "fast.merged()", fast=fast, **given)
    for answer, one in zip(names["answers"], given.values(), strict=True):
        torch.testing.assert_close(answer, fast(**one))
    scores = pages.run("docs/serving.md", "offsets", torch=torch, merged=names["merged"])["scores"]
    mine = [(7, [3, 14]), (19, [15, 9, 2])]
    expected = torch.cat([fast(user=torch.tensor([user]), item=torch.tensor(items)) for user, items in mine])
    torch.testing.assert_close(scores, expected)


@pytest.mark.cluster
def test_the_text_about_ray_serve(
    serve: Any, saved: tuple[CompressedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, folder = saved
    monkeypatch.chdir(folder.parent)
    torch.testing.assert_close(
        pages.run("docs/serving.md", "serve.run", request=request(3))["scores"], fast(**request(3))
    )
    serve.delete("default")
