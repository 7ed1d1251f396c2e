"""An artifact's folder, read: regular files of known names alone, opened below the folder, their digests checked first.

No link is followed and no file read that the manifest does not name. A file is opened once: what was checked is what is
read, whatever is put in its place meanwhile; where a whole new artifact is, that is read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, ArtifactNotFoundError, CorruptArtifactError, UnsafeArtifactError
from .manifest import LIMIT, Manifest, read_manifest

__all__ = ["MANIFEST", "Folder", "folder_digest", "opened", "refuse_other"]

MANIFEST = "manifest.json"
_NAME = re.compile(r"(graphs/)?[A-Za-z0-9][A-Za-z0-9_-]{0,80}\.(json|onnx|safetensors|md)")
_PIECE = 4 << 20
_TRIES = 50


class Folder:
    """The files of an artifact, open. `digest` is that of the manifest, `created` when it was written."""

    def __init__(
        self, path: Path, descriptors: dict[str, int], manifest: Manifest, digest: str, created: str
    ) -> None:
        self.path, self.manifest, self.digest, self.created = path, manifest, digest, created
        self._descriptors = descriptors

    def descriptor(self, name: str) -> int:
        """The open file of this name. Raises `UnsafeArtifactError` where the manifest names none."""
        if name not in self._descriptors:
            raise UnsafeArtifactError(
                f"{self.path}: the manifest names no file {name!r:.80}", path=str(self.path)
            )
        return self._descriptors[name]

    def where(self, name: str) -> str:
        """The path of a file, to be shown."""
        return str(self.path / name)

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a file. Raises `UnsafeArtifactError` where there are more than any such file has."""
        descriptor, size = self.descriptor(name), self.manifest.files[name].bytes
        if size > limit:
            raise UnsafeArtifactError(
                f"{self.where(name)} has {size:,} bytes, {limit:,} are the most", path=self.where(name)
            )
        return os.pread(descriptor, size, 0)


def refuse_other(path: str | os.PathLike[str], found: str, expected: str, *, meant: str, cure: str) -> None:
    """Raises `ArtifactError` where the artifact at a path is not that of the digest expected, which "was deployed", say."""
    if found != expected:
        raise ArtifactError(
            f"the artifact at {os.fspath(path)} is another than {meant}: it was saved anew since (digest {found[:16]}..., expected "
            f"{expected[:16]}...). {cure}",
            path=os.fspath(path),
        )


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], *, verify: bool = True) -> Iterator[Folder]:
    """The artifact at a path, every file open and as it was written; closed at the end.

    Raises `ArtifactNotFoundError` where there is none, `UnsafeArtifactError` for links, devices, files that the manifest does
    not name and names that leave the folder, `CorruptArtifactError` for files of another size or digest. With `verify=False`
    digests of files are not compared. Cost: one pass over the bytes.
    """
    root = Path(os.fspath(path))
    for left in reversed(range(_TRIES)):
        with contextlib.ExitStack() as stack:
            top = stack.enter_context(_directory(root))
            try:
                files = _files(stack, top, root, verify)
            except (CorruptArtifactError, ArtifactNotFoundError):
                if left and _was_replaced(top, root):
                    continue
                raise
            yield files
            return


def folder_digest(path: str | os.PathLike[str]) -> str:
    """The digest of the manifest of the artifact at a path. Raises as `opened`. Cost: that of reading the manifest."""
    with opened(path, verify=False) as files:
        return files.digest


def _was_replaced(top: int, root: Path) -> bool:
    """Whether another folder has the name by now: what was opened was being removed."""
    try:
        there, here = os.stat(root), os.fstat(top)
    except OSError:
        return True
    return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)


def _files(stack: contextlib.ExitStack, top: int, root: Path, verify: bool) -> Folder:
    """Every file of the folder, open and checked."""
    manifest, digest, created = read_manifest(_manifest(top, root), str(root / MANIFEST))
    below = _below(stack, top, root, manifest)
    _check_names(top, below, root, manifest)
    descriptors = {}
    for name, wanted in manifest.files.items():
        folder, where = below if "/" in name else top, str(root / name)
        descriptors[name] = stack.enter_context(_file(folder, name.rpartition("/")[2], where))
        size = os.fstat(descriptors[name]).st_size
        if size != wanted.bytes:
            raise CorruptArtifactError(f"{where} has {size:,} bytes, expected {wanted.bytes:,}", path=where)
    for name, wanted in manifest.files.items() if verify else ():
        found, where = _sha256(descriptors[name], wanted.bytes), str(root / name)
        if found != wanted.sha256:
            raise CorruptArtifactError(
                f"{where} is not as it was written: {wanted.bytes:,} bytes as expected, of digest {found[:16]}..., "
                f"expected {wanted.sha256[:16]}...",
                path=where,
            )
    return Folder(root, descriptors, manifest, digest, created)


@contextlib.contextmanager
def _directory(root: Path) -> Iterator[int]:
    if "\0" in str(root):
        raise ArtifactNotFoundError(f"{str(root)!r} is no path", path=str(root))
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise ArtifactNotFoundError(f"there is no artifact at {root}", path=str(root)) from error
    except NotADirectoryError as error:
        raise UnsafeArtifactError(
            f"{root} is a file: artifacts are folders, and nothing else is ever opened (no pickle, no .pt2)",
            path=str(root),
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _file(folder: int, name: str, where: str) -> Iterator[int]:
    """A regular file of the folder, opened for reading."""
    try:
        # Without O_NONBLOCK a pipe would wait for a writer.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError as error:
        raise CorruptArtifactError(f"{where} is gone, which the manifest names", path=where) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeArtifactError(f"{where} is a link: artifacts hold files", path=where) from error
        raise UnsafeArtifactError(f"{where} cannot be opened: {error.strerror}", path=where) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UnsafeArtifactError(f"{where} is no regular file", path=where)
        if found.st_nlink > 1:
            raise UnsafeArtifactError(
                f"{where} is linked from {found.st_nlink} places, which others may write to: copy the folder",
                path=where,
            )
        yield descriptor
    finally:
        os.close(descriptor)


def _manifest(top: int, root: Path) -> bytes:
    where = str(root / MANIFEST)
    if MANIFEST not in os.listdir(top):
        raise ArtifactNotFoundError(f"{root} holds no {MANIFEST}: it is no artifact of fastrec", path=where)
    with _file(top, MANIFEST, where) as descriptor:
        return os.read(descriptor, LIMIT + 1)


def _below(stack: contextlib.ExitStack, top: int, root: Path, manifest: Manifest) -> int:
    """The folder of graphs, open; -1 where there is none."""
    for name in manifest.files:
        if not _NAME.fullmatch(name) or name == MANIFEST:
            raise UnsafeArtifactError(
                f"{root}: the manifest names {name!r:.80}, which no artifact holds", path=str(root)
            )
    if not any("/" in name for name in manifest.files):
        return -1
    try:
        below = os.open("graphs", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    except FileNotFoundError as error:
        raise CorruptArtifactError(f"{root / 'graphs'} is gone", path=str(root / "graphs")) from error
    except OSError as error:
        raise UnsafeArtifactError(
            f"{root / 'graphs'} is a link or no folder: {error.strerror}", path=str(root / "graphs")
        ) from error
    stack.callback(os.close, below)
    return below


def _check_names(top: int, below: int, root: Path, manifest: Manifest) -> None:
    """Raises for files that the manifest does not name, but those whose names begin with a dot, and for missing ones."""
    there = {name for name in os.listdir(top) if name[0] != "."} - {MANIFEST}
    if below >= 0:
        there.discard("graphs")
        there |= {f"graphs/{name}" for name in os.listdir(below) if name[0] != "."}
    if strange := sorted(there - set(manifest.files)):
        raise UnsafeArtifactError(
            f"{root} holds {strange[0]!r:.80}, which its manifest does not name: artifacts hold nothing else",
            path=str(root / strange[0]),
        )
    if gone := sorted(set(manifest.files) - there):
        where = str(root / gone[0])
        raise CorruptArtifactError(f"{where} is gone, which the manifest names", path=where)


def _sha256(descriptor: int, size: int) -> str:
    digest, place = hashlib.sha256(), 0
    while place < size:
        piece: Any = os.pread(descriptor, min(_PIECE, size - place), place)
        if not piece:
            break
        digest.update(piece)
        place += len(piece)
    return digest.hexdigest()
