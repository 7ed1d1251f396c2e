"""Tensors on disk: every storage once, in a file of the safetensors format, mapped into memory as it is loaded.

A tensor is described by where it lies: the entry of the file, byte offset, dtype, shape and strides. Views of one storage
(a table and the stacked table it is part of) stay views. Entries begin at multiples of 64 bytes, as torch's own do:
kernels of some libraries add up in another order at other addresses.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import CorruptArtifactError, InputError, UnsafeArtifactError

__all__ = ["Stored", "Tensors", "digest_of", "dtype_name", "dtype_named"]

_ALIGNED = 64
_HEADER = 64 << 20
_PIECE = 16 << 20
_PAD = "_pad."
# Python has no name for it before 3.13.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
# Entries in the words of the format; what it has no word for is written as bytes.
_WORDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_SIZES = {word: dtype.itemsize for dtype, word in _WORDS.items()}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*_WORDS, torch.complex64, torch.complex128)}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in an artifact. Raises `InputError` at one that no artifact holds."""
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError(f"a tensor of {dtype} cannot be saved: dtypes are {', '.join(_DTYPES)}")
    return name


def dtype_named(name: Any, where: str) -> torch.dtype:
    """The dtype of a name. Raises `UnsafeArtifactError` at any other."""
    if not isinstance(name, str) or name not in _DTYPES:
        raise UnsafeArtifactError(f"{where}: dtype {name!r:.40} is none of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def digest_of(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's bytes."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


@dataclass
class _Range:
    """The part of a storage that is read: bytes `low` to `high` of `base`, with what reads it first."""

    base: torch.UntypedStorage
    name: str
    low: int
    high: int
    views: list[Tensor]


class Tensors:
    """Collects tensors to be written. `add` names one, `refer` says where it lies, once all have been added."""

    def __init__(self) -> None:
        self._ranges: dict[int, _Range] = {}
        self._entries: dict[int, tuple[str, int]] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """One more tensor, under the name its storage gets if it is the first to read that."""
        tensor = _plain(tensor, name)
        base = tensor.untyped_storage()
        first = int(tensor.storage_offset()) * tensor.itemsize
        last = first + _reach(tensor.shape, tensor.stride()) * tensor.itemsize
        # An empty storage has no address of its own.
        found = self._ranges.setdefault(base.data_ptr() or -id(base), _Range(base, name, first, last, []))
        found.low, found.high = min(found.low, first), max(found.high, last)
        found.views.append(tensor)

    def settle(self) -> None:
        """Fixes what is written: storages that hold the same bytes are one."""
        taken: dict[tuple[str, int], str] = {}
        names: set[str] = set()
        self._chosen: list[tuple[str, Tensor, Tensor]] = []
        for key, part in self._ranges.items():
            part.low -= part.low % _ALIGNED
            raw = torch.tensor([], dtype=torch.uint8).set_(part.base)[part.low : part.high]
            digest = hashlib.sha256(_bytes(raw)).hexdigest(), len(raw)
            if digest not in taken:
                stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", part.name)[:120] or "tensor"
                again = (f"{stem}.{count}" for count in itertools.count(1))
                name = next(one for one in itertools.chain([stem], again) if one not in names)
                names.add(name)
                taken[digest] = name
                self._chosen.append((name, raw, _shown(part, raw)))
            self._entries[key] = taken[digest], part.low

    def refer(self, tensor: Tensor) -> dict[str, Any]:
        """Where a tensor that was added lies, as plain data."""
        tensor = _plain(tensor, "a tensor")
        base = tensor.untyped_storage()
        name, low = self._entries[base.data_ptr() or -id(base)]
        return {
            "entry": name,
            "offset": tensor.storage_offset() * tensor.itemsize - low,
            "dtype": dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "stride": list(tensor.stride()),
        }

    def write(self, file: BinaryIO) -> None:
        """Writes the file, piece by piece: nothing is copied whole."""
        header: dict[str, Any] = {}
        place, pads = 0, 0
        pieces: list[Tensor | int] = []
        for name, raw, shown in self._chosen:
            end = place + len(raw)
            header[name] = {
                "dtype": _WORDS[shown.dtype],
                "shape": list(shown.shape),
                "data_offsets": [place, end],
            }
            pieces.append(raw)
            place = end + -end % _ALIGNED
            if place > end:
                # The format has no room between entries.
                header[f"{_PAD}{pads}"] = {
                    "dtype": "U8",
                    "shape": [place - end],
                    "data_offsets": [end, place],
                }
                pieces.append(place - end)
                pads += 1
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % _ALIGNED)
        file.write(struct.pack("<Q", len(text)) + text)
        for piece in pieces:
            if isinstance(piece, int):
                file.write(bytes(piece))
                continue
            view = _bytes(piece)
            for start in range(0, len(view), _PIECE):
                file.write(view[start : start + _PIECE])


class Stored:
    """The tensors of a file, mapped privately: pages are shared by all who map it, and copied if ever written to."""

    def __init__(self, descriptor: int, size: int, path: str) -> None:
        self._path = path
        if size < 8:
            raise CorruptArtifactError(f"{path}: {size} bytes are no safetensors file", path=path)
        self._map = _mapped(descriptor, size)
        (length,) = struct.unpack("<Q", self._map[:8])
        if length > min(_HEADER, size - 8):
            raise UnsafeArtifactError(
                f"{path}: the header is said to take {length:,} bytes, of {size:,} in all; {_HEADER:,} are the most",
                path=path,
            )
        self._start = 8 + length
        self._entries = _read_header(self._map[8 : self._start], size - self._start, path)
        self._made: dict[str, Tensor] = {}

    def tensor(self, data: Any, where: str) -> Tensor:
        """The tensor described by plain data. Raises `UnsafeArtifactError` for one outside its entry."""
        wanted = {"entry", "offset", "dtype", "shape", "stride"}
        if not isinstance(data, dict) or set(data) != wanted:
            raise UnsafeArtifactError(
                f"{where}: expected the place of a tensor, got {data!r:.80}", path=self._path
            )
        dtype = dtype_named(data["dtype"], where)
        low, high = self._entries.get(str(data["entry"]), (0, -1))
        shape, stride, offset = _sizes(data["shape"]), _sizes(data["stride"]), _sizes([data["offset"]])
        if high < low or shape is None or stride is None or offset is None or len(shape) != len(stride):
            raise UnsafeArtifactError(f"{where}: {data!r:.120} is the place of no tensor", path=self._path)
        item = dtype.itemsize
        aligned = offset[0] % item == 0 and (self._start + low) % item == 0
        if not aligned or low + offset[0] + _reach(shape, stride) * item > high:
            raise UnsafeArtifactError(f"{where}: {data!r:.120} lies outside its entry", path=self._path)
        if high == low:
            return torch.empty_strided(shape, stride, dtype=dtype)
        name = str(data["entry"])
        if name not in self._made:
            # A storage of its own for each entry.
            self._made[name] = torch.frombuffer(
                self._map, dtype=torch.uint8, count=high - low, offset=self._start + low
            )
        flat = self._made[name][: (high - low) // item * item].view(dtype)
        return torch.as_strided(flat, shape, stride, offset[0] // item)


def _mapped(descriptor: int, size: int) -> mmap.mmap:
    """A private mapping. Where the system has the flag, no memory is set aside for copies of pages: files may be larger than it."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
    flags, both = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    return mmap.mmap(descriptor, size, flags=flags, prot=both)


def _read_header(text: bytes, room: int, path: str) -> Mapping[str, tuple[int, int]]:
    """Where each entry begins and ends; they lie end to end, in order, and fill the file."""
    try:
        data = json.loads(text)
        found, place = {}, 0
        for name, entry in data.items():
            low, high = entry["data_offsets"]
            count = 1
            for size in entry["shape"]:
                count *= size
            if type(low) is not int or type(high) is not int or low != place or high < low:
                raise ValueError(f"entry {name!r:.40} does not begin where the one before ends")
            if count * _SIZES[entry["dtype"]] != high - low:
                raise ValueError(f"entry {name!r:.40} is of another size than its shape")
            found[name] = (low, high)
            place = high
        if place != room:
            raise ValueError(f"entries take {place:,} bytes, the file has {room:,}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnsafeArtifactError(f"{path}: not a header of safetensors: {error}", path=path) from error
    return found


def _plain(tensor: Tensor, name: str) -> Tensor:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise InputError(
            f"{name} is {tensor.layout} on {tensor.device}: dense tensors in main memory can be saved"
        )
    return tensor.detach().resolve_conj().resolve_neg()


def _reach(shape: Any, stride: Any) -> int:
    """Elements from the first that is read to one behind the last."""
    if any(size == 0 for size in shape):
        return 0
    return 1 + sum(int(size - 1) * int(step) for size, step in zip(shape, stride, strict=True))


def _sizes(values: Any) -> tuple[int, ...] | None:
    """Numbers that may be sizes, None for anything else."""
    if not isinstance(values, list) or len(values) > 32:
        return None
    if not all(type(value) is int and 0 <= value < 2**48 for value in values):
        return None
    return tuple(values)


def _bytes(raw: Tensor) -> memoryview:
    return memoryview(raw.numpy().data).cast("B") if len(raw) else memoryview(b"")


def _shown(part: _Range, raw: Tensor) -> Tensor:
    """The entry in the type, and where one tensor is all of it, the shape of its readers."""
    (view, *others) = part.views
    size = view.dtype.itemsize
    if view.dtype not in _WORDS or len(raw) % size or any(other.dtype is not view.dtype for other in others):
        return raw
    if view.is_contiguous() and view.nbytes == len(raw):
        return view
    return raw[: len(raw)].view(view.dtype) if raw.storage_offset() % size == 0 else raw
