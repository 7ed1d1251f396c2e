"""A reader sees the old artifact or the new one, whole, whatever becomes of the writer."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from fastrec import ArtifactError, load
from fastrec.artifact import replacing, write
from fastrec.artifact.folder import opened

from .conftest import Saved, batch

KILLS = int(os.environ.get("FASTREC_KILLS", "50"))


def _write_on(saved: Saved, target: Path, turns: int = 1_000_000) -> None:
    """Writes again and again, in a child process, and ends it."""
    try:
        for turn in range(turns):
            write(saved.made, target, at=f"turn {turn}")
    finally:
        os._exit(0)


def left(folder: Path) -> list[Path]:
    return [path for path in folder.parent.iterdir() if ".fastrec-" in path.name]


def test_a_killed_writer_leaves_one_whole_artifact(saved: Saved, tmp_path: Path) -> None:
    target = tmp_path / "there" / "artifact"
    target.parent.mkdir()
    write(saved.made, target, at="the first")
    began = time.perf_counter()
    write(saved.made, target, at="the second")
    took = time.perf_counter() - began
    seen = set()
    for count in range(KILLS):
        child = os.fork()
        if not child:
            _write_on(saved, target)
        # Instants all over a write and the next ones, which are slower in a child.
        time.sleep(4 * took * (count % 67) / 67)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with opened(target) as files:
            seen.add(files.created)
        assert len(left(target)) <= 1
    assert len(seen) > 1
    write(saved.made, target)
    assert left(target) == []


def test_a_reader_beside_a_writer_never_sees_a_mixture(saved: Saved, tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    write(saved.made, target, at="the first")
    child = os.fork()
    if not child:
        _write_on(saved, target, 20)
    reads = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        with opened(target) as files:
            assert files.created == "the first" or files.created.startswith("turn")
        reads += 1
    assert reads > 1


def test_no_room_leaves_the_old_one_and_nothing_else(saved: Saved, tmp_path: Path) -> None:
    target, told = tmp_path / "artifact", tmp_path / "told"
    write(saved.made, target)
    before = (target / "manifest.json").read_bytes()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            write(saved.made, target)
        except ArtifactError as error:
            told.write_text(f"{error.path}: {error}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert "could not be written: File too large" in told.read_text() and "artifact" in told.read_text()
    assert (target / "manifest.json").read_bytes() == before and left(target) == []


def test_a_place_that_cannot_be_written_to_is_named(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="could not be written: No such") as caught:
        write(saved.made, tmp_path / "nowhere" / "artifact")
    assert str(tmp_path / "nowhere") in caught.value.path
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ArtifactError, match="no folder"):
        write(saved.made, file)
    assert file.read_text() == "x"
    with pytest.raises(ArtifactError) as caught:
        saved.fast.save("/proc/artifact")
    assert "/proc" in caught.value.path


def test_a_folder_of_other_things_is_not_replaced(saved: Saved, tmp_path: Path) -> None:
    folder = saved.copy(tmp_path)
    (folder / ".git").mkdir()
    with pytest.raises(ArtifactError, match="is of no artifact"):
        write(saved.made, folder)
    assert (folder / ".git").exists() and left(folder) == []


def test_without_an_exchange_in_one_step(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacing, "_exchange", lambda one, other: False)
    write(saved.made, tmp_path / "a")
    first = (tmp_path / "a" / "manifest.json").stat().st_ino
    write(saved.made, tmp_path / "a")
    assert (tmp_path / "a" / "manifest.json").stat().st_ino != first
    assert load(tmp_path / "a")(**batch(2)).shape == (2,) and left(tmp_path / "a") == []


def test_what_is_loaded_stays_when_its_folder_is_replaced_or_removed(saved: Saved, tmp_path: Path) -> None:
    target = saved.copy(tmp_path)
    fast = load(target)
    before = fast(**batch(9))
    write(saved.made, target)
    assert (fast(**batch(9)) == before).all()
    shutil.rmtree(target)
    assert (fast(**batch(9)) == before).all()
