"""Tensors on the disk, where there are more than fit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastrec.artifact import tensors

OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@pytest.mark.skipif(sys.platform != "linux", reason="whether memory is set aside is for Linux to say")
def test_a_file_larger_than_memory_is_mapped_and_what_is_written_stays_private(tmp_path: Path) -> None:
    if OVERCOMMIT.read_text().strip() == "2":
        pytest.skip("this machine promises no more memory than it has, whatever is asked")
    size = 1 << 42
    path = tmp_path / "large"
    with path.open("wb") as file:
        try:
            file.truncate(size)
        except OSError as error:
            pytest.skip(f"no such files here: {error}")
    with path.open("rb") as file:
        mapped = tensors._mapped(file.fileno(), size)
    mapped[size - 1] = 7
    assert mapped[size - 2 :] == b"\0\7"
    with path.open("rb") as file:
        file.seek(size - 1)
        assert file.read() == b"\0"
    mapped.close()
