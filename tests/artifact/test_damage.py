"""Files cut or changed: each is found before a session is made, and named."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from fastrec import CorruptArtifactError, backends, load
from fastrec.artifact.folder import opened
from fastrec.backends import Eager, OnnxRuntime

from .conftest import Saved, batch

FLIPS = 1000


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a session was made")

    for kind in (Eager, OnnxRuntime):
        monkeypatch.setattr(kind, "compile", never)
        monkeypatch.setattr(kind, "open", never)
    assert backends.BACKENDS["eager"] is Eager


@pytest.mark.usefixtures("no_session")
def test_a_file_that_was_cut_is_named_with_its_size(saved: Saved, tmp_path: Path) -> None:
    folder = saved.copy(tmp_path)
    for path in files(folder):
        whole = path.read_bytes()
        for size in (0, 1, len(whole) // 4, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(CorruptArtifactError) as caught:
                load(folder)
            said = str(caught.value)
            assert path.name in said and f"{size:,} bytes" in said and caught.value.path == str(path)
            if path.name != "manifest.json":
                assert f"expected {len(whole):,}" in said
        path.write_bytes(whole)
        whole_again = path.read_bytes()
        assert whole_again == whole


@pytest.mark.usefixtures("no_session")
def test_no_bit_is_flipped_unseen(saved: Saved, tmp_path: Path) -> None:
    folder, rng = saved.copy(tmp_path), random.Random(0)
    paths = files(folder)
    for count in range(FLIPS):
        path = paths[count % len(paths)]
        whole = path.read_bytes()
        bit = rng.randrange(8 * len(whole))
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        with pytest.raises(CorruptArtifactError), opened(folder):
            pass
        path.write_bytes(whole)
    with opened(folder):
        pass


def test_digests_are_not_compared_where_that_is_asked_for(saved: Saved, tmp_path: Path) -> None:
    folder = saved.copy(tmp_path)
    path = folder / "README.md"
    path.write_bytes(path.read_bytes().replace(b"fastrec", b"fastRec", 1))
    with pytest.raises(CorruptArtifactError, match=r"README\.md is not as it was written"):
        load(folder)
    assert load(folder, verify=False)(**batch(3)).shape == (3,)
    shutil.rmtree(folder / "graphs")
    with pytest.raises(CorruptArtifactError, match="graphs"):
        load(folder, verify=False)
