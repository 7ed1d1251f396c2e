"""A folder written whole or not at all: filled beside its place, then put there in one step.

Where something is in the place already, both are exchanged (`renameat2` with `RENAME_EXCHANGE`, one step for the file
system), and the old one is removed. Without that call the old one is moved aside first: for a moment there is none.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import ArtifactError
from .manifest import File

__all__ = ["Writer", "beside", "replaced"]

_EXCHANGE = 2
_OWN = frozenset(["manifest.json", "README.md", "report.json", "tensors.safetensors", "graphs"])
_AT_FDCWD = -100


class Writer:
    """Writes the files of a new folder, and knows the digest of each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, File] = {}

    def write(self, name: str, data: bytes) -> None:
        """One file."""
        with self.open(name) as file:
            file.write(data)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A file to be written to; on the disk, and with its digest known, once left."""
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        with open(path, "xb", buffering=0) as raw:
            file = _Digesting(raw)
            yield file  # type: ignore[misc]  # writing is all that is asked of it
            os.fsync(raw.fileno())
        self.files[name] = File(file.digest.hexdigest(), file.size)


class _Digesting:
    """A file that computes the digest of what it is given."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self.digest, self.size = raw, hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.size += len(view)
        while len(view):
            view = view[self._raw.write(view) :]


@contextlib.contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A fresh folder, which takes the place of `target` if all goes well, and is removed if not.

    Raises `ArtifactError`, naming the path, where there is no room or no right to write.
    """
    with beside(target) as fresh:
        yield fresh
        for folder in (*(path for path in fresh.iterdir() if path.is_dir()), fresh):
            _sync(folder)
        _swap(fresh, target)
        _sync(target.parent)


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target`, removed in the end, as those are that writers which were killed left behind.

    Raises `ArtifactError`, naming the path, where it, or what is done in it, cannot be written.
    """
    prefix = f".{target.name}.fastrec-"
    fresh = target.parent / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        _sweep(target.parent, prefix)
        fresh.mkdir()
        yield fresh
    except OSError as error:
        where = error.filename or target
        raise ArtifactError(
            f"{target} could not be written: {error.strerror or error} (at {where}). What was there before still is.",
            path=str(where),
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _sweep(parent: Path, prefix: str) -> None:
    """Removes what earlier writers left behind that no longer live."""
    for left in parent.iterdir():
        number = left.name.removeprefix(prefix).partition("-")[0]
        if left.name.startswith(prefix) and number.isdecimal() and not _lives(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _swap(fresh: Path, target: Path) -> None:
    if not os.path.lexists(target):
        os.rename(fresh, target)
        return
    if target.is_symlink() or not target.is_dir():
        raise FileExistsError(errno.EEXIST, "there is something that is no folder", str(target))
    if strange := sorted({path.name for path in target.iterdir()} - _OWN):
        # It would be removed with the old artifact.
        raise FileExistsError(
            errno.EEXIST, "the folder holds what is of no artifact, move it first", str(target / strange[0])
        )
    if _exchange(fresh, target):
        return
    aside = fresh.with_name(f"{fresh.name}-old")
    os.rename(target, aside)
    try:
        os.rename(fresh, target)
    except OSError:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Both under each other's names, in one step; False where this system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
