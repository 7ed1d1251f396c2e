"""Models in other processes: pickled as a path, copied, forked."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import cloudpickle
import joblib
import pytest
import torch

from fastrec import (
    ArtifactError,
    ArtifactNotFoundError,
    CompressedModel,
    ForkSafetyError,
    InputError,
    compress,
    load,
)
from fastrec.backends import Eager, OpenVino, Source
from tests.zoo import ZOO, make

from .conftest import Saved, batch, ranker


def answer(fast: CompressedModel) -> torch.Tensor:
    return fast(**batch(7))


@pytest.mark.parametrize("library", [pickle, cloudpickle], ids=lambda one: one.__name__)
def test_a_pickle_is_the_path_and_gives_the_same_answers(library: object, saved: Saved) -> None:
    for fast in (saved.fast, load(saved.folder)):
        data = library.dumps(fast)  # type: ignore[attr-defined]
        assert len(data) < 1000
        assert torch.equal(answer(pickle.loads(data)), answer(saved.fast))


@pytest.mark.parametrize("name", ["nested", "looping"])
def test_a_pickle_carries_what_loading_is_given(name: str, tmp_path: Path) -> None:
    """Classes of batches by reference, and a model that could not be captured."""
    one = next(one for one in ZOO if one.name == name)
    given = one.batch(16, torch.Generator().manual_seed(0))
    fast = compress(make(one), given, backends=[Eager()], batch_sizes=(16,), seconds=1, progress=False)
    fast.save(tmp_path / "a")
    again = pickle.loads(pickle.dumps(fast))
    twice = pickle.loads(pickle.dumps(again))
    args, kwargs = fast.call_of(given)
    before, after, last = (model(*args, **kwargs) for model in (fast, again, twice))
    assert type(before) is type(after) is type(last)
    assert repr(before) == repr(after) == repr(last)


def test_a_pickle_without_its_folder(saved: Saved, tmp_path: Path) -> None:
    data = pickle.dumps(load(saved.copy(tmp_path)))
    shutil.rmtree(tmp_path / "artifact")
    with pytest.raises(ArtifactNotFoundError, match="no artifact at"):
        pickle.loads(data)


def test_a_pickle_of_what_was_saved_anew(saved: Saved, tmp_path: Path) -> None:
    fast = load(saved.copy(tmp_path))
    data = pickle.dumps(fast)
    other = compress(ranker(), batch(20), backends=[], batch_sizes=(1,), seconds=1, progress=False)
    other.save(tmp_path / "artifact")
    with pytest.raises(ArtifactError, match="another than was pickled"):
        pickle.loads(data)


def test_what_was_never_saved_is_not_pickled() -> None:
    fast = compress(ranker(), batch(20), backends=[], batch_sizes=(1,), seconds=1, progress=False)
    with pytest.raises(InputError, match=r"save\(folder\) it first"):
        pickle.dumps(fast)
    assert torch.equal(answer(copy.deepcopy(fast)), answer(fast))


def test_copies_share_what_serves(saved: Saved) -> None:
    for twin in (copy.copy(saved.fast), copy.deepcopy(saved.fast)):
        assert twin is not saved.fast and twin.sessions is saved.fast.sessions
        assert torch.equal(answer(twin), answer(saved.fast))


def test_processes_of_joblib(saved: Saved) -> None:
    fast = load(saved.folder)
    (found,) = joblib.Parallel(n_jobs=2, backend="loky")([joblib.delayed(_in_child)(fast)])
    assert found == answer(fast).tolist()


def _in_child(fast: CompressedModel) -> list[float]:
    torch.set_num_threads(1)
    return fast(**batch(7)).tolist()


_FORKED = """
import os, signal, sys
import torch
from fastrec import ForkSafetyError, load
threads = int(sys.argv[2])
torch.set_num_threads(threads)
fast = load(sys.argv[1])
given = {"user": torch.zeros(600, dtype=torch.int64), "item": torch.arange(600) % 90, "price": torch.randn(600)}
torch.randn(512, 512) @ torch.randn(512, 512)
before = fast(**given)
child = os.fork()
if not child:
    signal.alarm(20)
    try:
        same = torch.equal(fast(**given), before)
        os._exit(0 if same else 1)
    except ForkSafetyError as error:
        os._exit(7 if "after the fork" in str(error) else 1)
    finally:
        os._exit(2)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_forked_from_one_with_threads_says_so_at_once(saved: Saved) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_FORKED), str(saved.folder), "2"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.strip() == "7", done.stderr


def test_a_process_forked_from_one_with_one_thread_answers(saved: Saved) -> None:
    given = batch(300)
    for fast in (saved.fast, load(saved.folder, model=saved.model)):
        before = fast(**given)
        child = os.fork()
        if not child:
            signal.alarm(20)
            same = False
            try:
                same = torch.equal(fast(**given), before)
            finally:
                os._exit(0 if same else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_openvino_has_threads_of_its_own(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = load(saved.folder)
    (name,) = fast.sources
    fast.sources = {name: Source(OpenVino(), fast.sources[name].program)}
    answer(fast)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(ForkSafetyError, match="OpenVINO"):
        answer(fast)
