"""A convolution as a linear map of windows, which is what calibration takes it for.

    conv(x)[n, :, p]  =  W window(x, n, p)  +  b          window (C k,), W (O, C k), k elements of the kernel

A window is what a kernel lies on at one position: all channels, and zeros where it reaches into the padding. With groups
W is (O, C k / groups), and each part of the results reads its own part of the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from ...graph import is_call

__all__ = ["CONVOLUTIONS", "Geometry", "geometry_of", "windows"]

aten = torch.ops.aten

CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding)
"""Convolutions of one and two dimensions as captured graphs call them: with sizes of padding, or with its name."""

_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
# The fractional parts of its multiples lie evenly, whatever the period of what is picked by them.
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Geometry:
    """How a kernel moves: steps and gaps for each dimension, padding for each beginning and then each end, and groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def geometry_of(node: fx.Node, kernel: tuple[int, ...]) -> Geometry:
    """That of a call of one of `CONVOLUTIONS`, its kernel (k_1, ...)."""
    assert is_call(node, *CONVOLUTIONS)
    given: dict[str, Any] = {**dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}
    count = len(kernel)
    stride, dilation = (_each(given.get(name, 1), count) for name in ("stride", "dilation"))
    padding = given.get("padding", 0)
    if padding == "same":
        # As torch: an odd one is put at the end.
        total = [gap * (size - 1) for gap, size in zip(dilation, kernel, strict=True)]
        ends = (*(size // 2 for size in total), *(size - size // 2 for size in total))
    else:
        ends = _each(0 if padding == "valid" else padding, count) * 2
    return Geometry(stride, ends, dilation, given.get("groups", 1))


def windows(x: Tensor, kernel: tuple[int, ...], geometry: Geometry, most: int) -> Tensor:
    """Up to `most` windows (n, C k) of x (N, C, *S), spread over its rows and positions.

    Example:
        >>> windows(torch.tensor([[[1.0, 2.0, 3.0]]]), (2,), Geometry((1,), (1, 0), (1,), 1), 9)
        tensor([[0., 1.],
                [1., 2.],
                [2., 3.]])
    """
    count = len(kernel)
    ends = [geometry.padding[k + side] for k in reversed(range(count)) for side in (0, count)]
    view = functional.pad(x, ends)
    for k, (size, gap, step) in enumerate(zip(kernel, geometry.dilation, geometry.stride, strict=True)):
        view = view.unfold(2 + k, gap * (size - 1) + 1, step)[..., ::gap]
    view = view.movedim(1, 1 + count)
    places = view.shape[: 1 + count]
    total = places.numel()
    picked = torch.arange(total)
    if total > most:
        picked = ((torch.arange(most, dtype=torch.float64) * _GOLDEN) % 1 * total).long()
    found: Tensor = view[torch.unravel_index(picked, places)]
    return found.flatten(1)


def _each(given: Any, count: int) -> tuple[int, ...]:
    """A number for each dimension: one may be given for all."""
    found = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    return found * count if len(found) == 1 else found
