"""NumPy arrays and torch tensors as one: what comes in is looked at as an array, what goes out is of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError

__all__ = ["Array", "Numbers", "as_kind", "finite", "numbers"]

Numbers = NDArray[np.floating[Any]]
Array = TypeVar("Array", NDArray[Any], Tensor)
"""A NumPy array or a torch tensor; what is given as one comes back as one."""


def numbers(given: Any, where: str) -> Numbers:
    """The numbers of an array or tensor in float32 or float64; float64 for whole numbers. Raises `InputError`."""
    if isinstance(given, Tensor):
        tensor = given.detach().cpu()
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            tensor = tensor.float()
        given = tensor.resolve_conj().numpy()
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "fiu":
        kind = f"an array of {given.dtype}" if isinstance(given, np.ndarray) else f"a {type(given).__name__}"
        raise InputError(f"{where} takes a NumPy array or a torch tensor of numbers, got {kind}")
    wide = given.dtype.kind != "f" or given.dtype.itemsize > 4
    return given.astype(np.float64 if wide else np.float32, copy=False)


def finite(values: Numbers, where: str) -> None:
    """Raises `InputError` at the first NaN or infinity, with its row."""
    good = np.isfinite(values)
    if not good.all():
        place = tuple(int(axis[0]) for axis in np.nonzero(~good))
        raise InputError(
            f"{where} is {values[place]} at {list(place)}: leave such rows out, or fill them first",
            row=place[0] if place else None,
        )


def as_kind(like: Any) -> Callable[[Numbers], Any]:
    """What gives results the kind, the device and, of floats, the type of `like`."""
    if isinstance(like, Tensor):
        dtype = like.dtype if like.is_floating_point() else torch.float64
        return lambda values: torch.from_numpy(np.ascontiguousarray(values)).to(like.device, dtype)
    kind = like.dtype if like.dtype.kind == "f" else np.dtype(np.float64)
    return lambda values: np.ascontiguousarray(values, dtype=kind)
