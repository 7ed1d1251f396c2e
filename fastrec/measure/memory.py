"""What a model holds in memory: bytes of distinct storages, and bytes of the process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor, nn

__all__ = ["resident_bytes", "tensor_bytes"]


def tensor_bytes(*modules: nn.Module) -> int:
    """Bytes of the distinct storages that the modules hold together.

    A storage shared by several tensors or modules counts once, and a view counts as the whole storage it keeps
    alive. Parameters, buffers, and tensors kept as plain attributes (also in lists, tuples and dicts) count;
    tensors on the meta device hold nothing.

    Example:
        >>> from torch import nn
        >>> a, b = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
        >>> b.weight = a.weight
        >>> tensor_bytes(a, b)
        128
    """
    storages: dict[tuple[str, int], int] = {}
    for module in modules:
        for part in module.modules():
            for tensor in _tensors(vars(part)):
                storage = tensor.untyped_storage()
                key = (str(tensor.device), storage.data_ptr())
                storages[key] = max(storages.get(key, 0), storage.nbytes())
    return sum(storages.values())


def resident_bytes() -> int:
    """Bytes that only this process holds (USS), or all its resident bytes (RSS) where the system hides the former."""
    process = psutil.Process()
    try:
        return int(process.memory_full_info().uss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)


def _tensors(attributes: Mapping[str, Any]) -> Iterator[Tensor]:
    """The plain strided tensors among attributes; what wraps others (sparse, quantised) is taken apart."""
    pending: list[Any] = [attributes]
    seen: set[int] = set()  # containers may hold themselves
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            parts = _parts(value)
            pending.extend(parts)
            if not parts and value.device.type != "meta":
                yield value
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            pending.extend(value.values() if isinstance(value, Mapping) else value)


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that a wrapping one is made of; none for a plain tensor."""
    if hasattr(tensor, "__tensor_flatten__"):
        return tuple(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
    if tensor.layout == torch.sparse_coo:
        return (tensor._indices(), tensor._values())
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    return ()
