"""A model that follows its artifact: every call is answered by one version, none fails, and the last one serves in the end."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastrec import (
    ArtifactNotFoundError,
    CompressedModel,
    CorruptArtifactError,
    Fuse,
    InputError,
    compress,
    follow,
    following,
    load,
    update,
)
from fastrec.artifact import payload, write
from fastrec.backends import Eager

SWAPS = int(os.environ.get("FASTREC_SWAPS", "200"))
LONG = 60.0


class Versioned(nn.Module):
    """Says its version twice, by way of a table and of a weight, beside the ids that it was asked about."""

    def __init__(self, version: float) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 4), nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            self.table.weight.copy_(torch.arange(50.0)[:, None].expand(50, 4) * version)
            self.head.weight.fill_(version)

    def forward(self, ids: Tensor, other: Tensor) -> dict[str, Tensor]:
        return {"one": self.table(ids) + 0.5, "two": self.head(self.table(other)).squeeze(1)}


def ids(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(50, (rows,), generator=rng), torch.randint(50, (rows,), generator=rng)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """torch with one thread, so that processes may be forked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def versions(
    served_anyway: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[CompressedModel], list[Path]]:
    """Some versions of a model, compressed, and the folder of each."""
    folder, first = tmp_path_factory.mktemp("versions"), Versioned(1.0).eval()
    made = [
        compress(
            first, ids(8, 0), recipe=Fuse(), backends=Eager(), batch_sizes=(8,), seconds=1, progress=False
        )
    ]
    assert made[0].report.status == "improved"
    made[0].save(folder / "0")
    for version in (2.0, 3.0, 4.0):
        shutil.copytree(folder / "0", folder / f"{len(made)}")
        made.append(update(folder / f"{len(made)}", Versioned(version).eval(), seconds=0.05, progress=False))
    return made, [folder / str(place) for place in range(len(made))]


def until(holds: Callable[[], bool]) -> None:
    """Waits for something to hold. Fails where it does not within a minute."""
    end = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.001)


Versions = tuple[list[CompressedModel], list[Path]]


def test_calls_under_load_are_each_of_one_version(versions: Versions, tmp_path: Path) -> None:
    made, _ = versions
    ready = [payload(one.contents(), one.sessions) for one in made]
    target = tmp_path / "a"
    write(ready[0], target)
    batches = [ids(rows, rows) for rows in (1, 3, 8, 33)]
    # What each version answers, to the last bit.
    right = [
        [tuple(one(*batch).values()) for one in map(_loaded, ready, [tmp_path] * 4)] for batch in batches
    ]
    seen: list[set[int]] = [set() for _ in range(4)]
    failed: list[str] = []
    stop = threading.Event()
    with follow(target, every=0.001) as served:

        def ask(place: int) -> None:
            turn = place
            # A thousand calls a second from each: what loads is to get on as well.
            while not stop.wait(0.001):
                turn += 1
                which = turn % len(batches)
                try:
                    answer = served(*batches[which])
                except BaseException as error:
                    failed.append(f"{type(error).__name__}: {error}")
                    return
                of = [
                    version
                    for version, (one, two) in enumerate(right[which])
                    if torch.equal(answer["one"], one) and torch.equal(answer["two"], two)
                ]
                if len(of) != 1:
                    failed.append(f"an answer of {len(of)} versions at once")
                    return
                seen[place].add(of[0])

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(1, SWAPS + 1):
                digest = write(ready[turn % 4], target, at=f"turn {turn}")
                until(lambda digest=digest: served.digest == digest or bool(failed))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failed
        assert served.swaps >= SWAPS and served.error is None
        assert set.union(*seen) == {0, 1, 2, 3}
        answer, last = served(*batches[2]), right[2][SWAPS % 4]
        assert torch.equal(answer["one"], last[0]) and torch.equal(answer["two"], last[1])
        assert served.digest == load(target).digest


def _loaded(ready: object, folder: Path) -> CompressedModel:
    write(ready, folder / "b")  # type: ignore[arg-type]
    return load(folder / "b")


def test_an_update_is_picked_up(versions: Versions, tmp_path: Path) -> None:
    target = Path(shutil.copytree(versions[1][0], tmp_path / "a"))
    with follow(target, every=0.005) as served:
        before = served.digest
        assert before == load(target).digest and served.swaps == 0
        new = update(target, Versioned(7.0).eval(), seconds=0.05, progress=False)
        until(lambda: served.digest == new.digest != before)
        assert torch.equal(served(*ids(5, 1))["one"], new(*ids(5, 1))["one"])
        assert served.report == new.report and served.recipe == new.recipe and served.notes == ()
        args, kwargs = served.call_of(ids(5, 1))
        assert torch.equal(served(*args, **kwargs)["two"], new(*ids(5, 1))["two"])


def test_what_is_broken_is_refused_and_told_and_the_old_one_serves(
    versions: Versions, tmp_path: Path
) -> None:
    target = Path(shutil.copytree(versions[1][0], tmp_path / "a"))
    right = load(target)(*ids(5, 1))
    with follow(target, every=0.005) as served:
        # Another artifact whose tensors were spoilt on the way.
        broken = Path(shutil.copytree(versions[1][1], tmp_path / "b"))
        data = bytearray((broken / "tensors.safetensors").read_bytes())
        data[-1] ^= 1
        (broken / "tensors.safetensors").write_bytes(data)
        os.rename(target, tmp_path / "old")
        os.rename(broken, target)
        until(lambda: isinstance(served.error, CorruptArtifactError))
        assert torch.equal(served(*ids(5, 1))["one"], right["one"]) and served.swaps == 0
        assert any(
            "the artifact in its place is refused" in note and "tensors" in note for note in served.notes
        )
        os.rename(target, tmp_path / "spoilt")
        until(lambda: isinstance(served.error, ArtifactNotFoundError))
        shutil.copytree(versions[1][2], target)
        until(lambda: served.swaps == 1)
        assert served.error is None and served.notes == ()
        assert torch.equal(served(*ids(5, 1))["one"], load(target)(*ids(5, 1))["one"])


def test_a_model_that_is_called_otherwise_does_not_take_over(versions: Versions, tmp_path: Path) -> None:
    target = Path(shutil.copytree(versions[1][0], tmp_path / "a"))
    with follow(target, every=3600) as served:
        before = served.digest
        other = compress(
            nn.Linear(3, 1).eval(), torch.randn(8, 3), recipe=Fuse(), backends=Eager(), batch_sizes=(8,), seconds=1,
            progress=False,
        )  # fmt: skip
        other.save(target)
        assert not served.refresh() and served.swaps == 0 and served.digest == before
        assert "called otherwise" in str(served.error)
        assert set(served(*ids(5, 1))) == {"one", "two"}


def test_the_same_artifact_written_anew_is_no_other_version(versions: Versions, tmp_path: Path) -> None:
    target = Path(shutil.copytree(versions[1][0], tmp_path / "a"))
    with follow(target, every=3600) as served:
        first = served.model
        assert not served.refresh()
        versions[0][0].save(target)
        assert not served.refresh() and served.model is first and served.swaps == 0
        versions[0][1].save(target)
        assert served.refresh() and served.model is not first and served.swaps == 1
        assert not served.refresh()


def test_closing_ends_the_thread_and_what_serves_goes_on(versions: Versions, tmp_path: Path) -> None:
    target = Path(shutil.copytree(versions[1][0], tmp_path / "a"))
    count = threading.active_count()
    served = follow(target, every=0.005)
    assert threading.active_count() == count + 1
    served.close()
    served.close()
    assert threading.active_count() == count
    versions[0][1].save(target)
    assert served(*ids(2, 0))["two"].shape == (2,) and served.swaps == 0
    # Without an end of it being asked for, its thread ends with it.
    served = follow(target, every=0.005)
    thread = served._thread
    del served
    gc.collect()
    until(lambda: not thread.is_alive())


def test_a_forked_process_follows_by_itself(versions: Versions, tmp_path: Path) -> None:
    target = Path(shutil.copytree(versions[1][0], tmp_path / "a"))
    told = tmp_path / "told"
    with follow(target, every=0.005) as served:
        # A fork while the lock is held must not keep the child waiting.
        with served._looking:
            child = os.fork()
            if not child:
                try:
                    served(*ids(2, 0))
                    versions[0][1].save(target)
                    until(lambda: served.swaps == 1)
                    told.write_text(served.digest)
                finally:
                    os._exit(0)
        os.waitpid(child, 0)
        assert told.read_text() == load(target).digest


def test_a_fork_of_several_threads_is_refused(versions: Versions, tmp_path: Path) -> None:
    target, told = Path(shutil.copytree(versions[1][0], tmp_path / "a")), tmp_path / "told"
    with follow(target, every=3600) as served:
        served.model._threads = 2
        child = os.fork()
        if not child:
            try:
                served(*ids(2, 0))
            except BaseException as error:
                told.write_text(type(error).__name__)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    assert told.read_text() == "ForkSafetyError"


def test_it_travels_as_the_path_of_its_folder(versions: Versions, tmp_path: Path) -> None:
    target = Path(shutil.copytree(versions[1][0], tmp_path / "a"))
    with follow(target, every=3600) as served:
        for twin in (pickle.loads(pickle.dumps(served)), copy.deepcopy(served), copy.copy(served)):
            with twin:
                assert twin.digest == served.digest and twin._every == 3600


def test_arguments_are_refused_by_name(versions: Versions, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError):
        follow(tmp_path / "none")
    for every in (0, -1.0, float("inf"), True, "often"):
        with pytest.raises(InputError, match="every takes a finite number of seconds"):
            follow(versions[1][0], every=every)  # type: ignore[arg-type]
    with follow(versions[1][0], every=3600) as served, pytest.raises(InputError, match="cannot be trained"):
        served.train()


def test_what_loading_raises_otherwise_is_told_too(
    versions: Versions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(shutil.copytree(versions[1][0], tmp_path / "a"))
    with follow(target, every=3600) as served:
        versions[0][1].save(target)

        def out_of_memory(*_: object, **__: object) -> CompressedModel:
            raise MemoryError("too large")

        with monkeypatch.context() as patch:
            patch.setattr(following, "load", out_of_memory)
            assert not served.refresh()
        assert isinstance(served.error, InputError) and "MemoryError: too large" in str(served.error)
        served(*ids(2, 0))
