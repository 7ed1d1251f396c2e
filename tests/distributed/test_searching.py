"""Trials by Ray actors: on cores of their own, with the outcomes of this process, also where one of them is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import pipeline
from fastrec.backends import Eager
from fastrec.compressed import CompressedModel
from fastrec.distributed import searching
from fastrec.distributed.searching import ray_workers
from fastrec.errors import InputError, PackageMissing
from fastrec.measure import evaluator
from fastrec.search import find, trials
from fastrec.techniques import TECHNIQUES
from tests import pages


class Ranker(nn.Module):
    """ids (N, 2) and numbers (N, 4) -> probability (N,); each process that calls it leaves its number and the processors it runs on."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder, self.home = folder, os.getpid()
        self.table = nn.Embedding(400, 8)
        self.tower = nn.Sequential(
            nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        if os.getpid() != self.home:
            self.seen()
        joined = torch.cat([self.table(ids).flatten(1), numbers], 1)
        return torch.sigmoid(self.tower(joined)).squeeze(1)

    def seen(self) -> None:
        """Leaves a note; ends the process where that was asked for, once a trial is over and so all have begun."""
        note, ends, trials = (Path(self.folder) / name for name in (str(os.getpid()), "ends", "trials.jsonl"))
        if not note.exists():
            note.write_text(json.dumps([sorted(os.sched_getaffinity(0)), torch.get_num_threads()]))
        if ends.exists() and trials.exists() and len(trials.read_text().splitlines()) > 1:
            try:
                ends.unlink()
            except FileNotFoundError:
                return  # another one ends
            os.kill(os.getpid(), signal.SIGKILL)


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(400, (count, 2), generator=draw), torch.randn(count, 4, generator=draw)


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def found(folder: Path, model: nn.Module | None = None, **settings: Any) -> CompressedModel:
    """What the smallest model within a budget is does not depend on a clock, with time enough."""
    settings = {"seconds": 3600.0, **settings}
    torch.manual_seed(0)
    model = (model or Ranker(str(folder))).eval()
    given = rows(2000, 1)
    with torch.no_grad():
        labels = torch.rand(2000, generator=torch.Generator().manual_seed(2)) < model(*given)
    with one_thread():
        return fastrec.compress(
            model, rows(64, 3), calibration=[rows(256, seed) for seed in range(4, 8)],
            evaluate=evaluator(zip(*(x.split(500) for x in given), strict=True), labels.float()),
            budget=fastrec.Budget({"auc": 0.05}, minimize="bytes"), backends=[Eager()], batch_sizes=(1, 16),
            progress=False, resume=folder / "trials.jsonl", **settings,
        )  # fmt: skip


def outcomes(fast: CompressedModel) -> list[Any]:
    return [(one.recipe, one.outcome, one.bytes, one.accuracy) for one in fast.report.searched]


def processes(folder: Path) -> dict[int, tuple[list[int], int]]:
    """The processors and the threads of each that called the model."""
    notes = {int(path.name): json.loads(path.read_text()) for path in folder.iterdir() if path.name.isdigit()}
    return {process: (processors, threads) for process, (processors, threads) in notes.items()}


def ended(process: int) -> bool:
    """Whether it is gone, within half a minute."""
    limit = time.monotonic() + 30
    while Path(f"/proc/{process}").exists():
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Few techniques, and little time to ask in this process which of them is fast, as the smallest is looked for."""
    kinds = ("fuse", "quantize_tables", "quantize_linears")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "TECHNIQUES", {name: TECHNIQUES[name] for name in kinds})
        patch.setattr(trials, "_TIMING", 0.2)
        patch.setattr(pipeline, "share", lambda *_: 0.1)
        yield


def in_workers() -> None:
    """As in this process."""
    trials._TIMING = 0.2


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of two processors on this machine, its files in a folder of their own."""
    ray = pytest.importorskip("ray", reason="ray is not installed: it is heavy, and an extra")
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False,
            object_store_memory=80 << 20, _temp_dir=folder, runtime_env={"worker_process_setup_hook": in_workers},
        )  # fmt: skip
        yield ray
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> CompressedModel:
    return found(tmp_path_factory.mktemp("here"))


TWO = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers take two processors")


def two() -> list[set[int]]:
    return [{processor} for processor in sorted(os.sched_getaffinity(0))[:2]]


@TWO
@pytest.mark.cluster
def test_two_workers_find_the_same_on_cores_of_their_own(
    ray: Any, straight: CompressedModel, tmp_path: Path
) -> None:
    fast = found(tmp_path, workers=ray_workers(2, cores=two()))
    assert fast.recipe == straight.recipe
    assert outcomes(fast) == outcomes(straight)
    seen = processes(tmp_path)
    assert sorted(on for on, _ in seen.values()) == [[processor] for one in two() for processor in one]
    assert [threads for _, threads in seen.values()] == [1, 1]
    assert any(note.startswith("trials were made by 2 workers") for note in fast.report.notes)
    assert all(ended(process) for process in seen)


@TWO
@pytest.mark.cluster
def test_a_worker_that_is_killed_in_a_trial_loses_nothing(
    ray: Any, straight: CompressedModel, tmp_path: Path
) -> None:
    (tmp_path / "ends").touch()
    fast = found(tmp_path, workers=ray_workers(2, cores=two()))
    assert not (tmp_path / "ends").exists(), "no worker was killed"
    assert fast.recipe == straight.recipe
    assert outcomes(fast) == outcomes(straight)
    assert len(processes(tmp_path)) == 2
    lost = [note for note in fast.report.notes if "a worker was lost as it tried" in note]
    assert len(lost) == 1 and "1 make the other trials" in lost[0]
    keys = [json.loads(line)["key"] for line in (tmp_path / "trials.jsonl").read_text().splitlines()[1:]]
    assert len(set(keys)) == len(keys) >= len(fast.report.searched)


@TWO
@pytest.mark.cluster
def test_the_text_of_the_page_runs(ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"backends": [Eager()], "batch_sizes": (1, 16), "progress": False}
    monkeypatch.setattr(fastrec, "compress", partial(fastrec.compress, **settings))
    monkeypatch.setattr(ray, "init", lambda: None)  # it is there
    monkeypatch.setattr(searching, "_own_cores", lambda: tuple(map(frozenset, two())))
    monkeypatch.chdir(tmp_path)
    model, batch = Ranker(str(tmp_path)).eval(), rows(64, 3)
    evaluate = evaluator([rows(64, 1)], [0.0, 1.0] * 32)  # too few to certify anything
    given = {"model": model, "batch": batch, "batches": [batch], "evaluate": evaluate}
    with one_thread():
        report = pages.run("docs/searching.md", "ray_workers", **given)["fast"].report
    assert report.status == "not_certifiable" and report.searched
    assert len(processes(tmp_path)) == 2
    assert any("2 of the 4 workers" in note for note in report.notes)


@pytest.mark.cluster
def test_workers_that_are_not_ready_in_time_make_no_trials(ray: Any, tmp_path: Path) -> None:
    fast = found(tmp_path, workers=ray_workers(1, cores=two()[:1]), seconds=1.0)
    told = "\n".join(fast.report.notes)
    assert "not started in its share of the time" in told and "made in this process" in told
    assert not processes(tmp_path)


class Unmoved:
    """An object that can be copied here, and taken nowhere else."""

    def __deepcopy__(self, memo: Any) -> Unmoved:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("this one stays")


@pytest.mark.cluster
def test_what_cannot_be_moved_is_tried_here(ray: Any, straight: CompressedModel, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Ranker(str(tmp_path))
    model.held = Unmoved()
    processors = sorted(os.sched_getaffinity(0))
    fast = found(tmp_path, model, workers=ray_workers(2, cores=[processors]))
    assert outcomes(fast) == outcomes(straight)
    assert not processes(tmp_path)
    told = "\n".join(fast.report.notes)
    assert "1 of the 2 workers" in told and "this one stays" in told and "made in this process" in told


def test_without_ray_or_a_connection_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="1 or more"):
        ray_workers(0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PackageMissing, match=r"pip install 'fastrec\[ray\]'"):
        ray_workers(2)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(InputError, match=r"call ray\.init\(\) first"):
        ray_workers(2)


def test_cores_that_overlap_or_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    processor = min(os.sched_getaffinity(0))
    with pytest.raises(InputError, match="twice"):
        ray_workers(2, cores=[{processor}, {processor}])
    for wrong in ([], [[]], [{10**6}], [{processor}, {-1}]):
        with pytest.raises(InputError, match="may run on"):
            ray_workers(2, cores=wrong)
    with pytest.raises(InputError, match="processors of each core"):
        ray_workers(2, cores=[processor])  # type: ignore[list-item]


def test_cores_are_those_that_this_process_may_run_on_each_once() -> None:
    cores, allowed = searching._own_cores(), os.sched_getaffinity(0)
    assert set().union(*cores) <= allowed
    assert sum(map(len, cores)) == len(set().union(*cores))


def test_a_container_uses_the_processors_that_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "cpu.max"
    assert searching._quota(path) is None
    for text, expected in (("max 100000", None), ("250000 100000", 2), ("50000 100000", 1), ("odd", None)):
        path.write_text(text + "\n")
        assert searching._quota(path) == expected
