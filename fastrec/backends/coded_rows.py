"""Lookups in tables of small integers, by torch's own kernels: what `fastrec.ops` decides, computed quicker.

The kernels add up bags, prefetch, and multiply and add in one step. As bags of one row each they give the operators'
numbers bit for bit (compared as a session is made; where a machine's do not, the operators serve).

One lookup of rows from a table of 2.6 million, one thread, microseconds; float32 is `direct.rows_of`:

| rows of | ids    | float32 | float16 | int8 | int4 |
|---------|--------|---------|---------|------|------|
| 16      | 26     | 5       | 8       | 10   | 9    |
| 16      | 2,600  | 53      | 59      | 51   | 57   |
| 16      | 26,000 | 509     | 498     | 461  | 507  |
| 64      | 2,600  | 128     | 127     | 87   |      |
| 64      | 26,000 | 1479    | 1469    | 911  |      |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import INT4, INT8

__all__ = ["QUICK", "bags_of"]

_Kernel = Callable[..., Tensor]
_NAMES = {INT8: "embedding_bag_byte_rowwise_offsets", INT4: "embedding_bag_4bit_rowwise_offsets"}
# torch may drop them one day, and some builds lack them.
_KERNELS: dict[Any, _Kernel | None] = {
    lookup: getattr(getattr(torch.ops.quantized, name, None), "default", None)
    for lookup, name in _NAMES.items()
}


def _rows_by(kernel: _Kernel) -> _Kernel:
    def rows_of(rows: Tensor, ids: Tensor) -> Tensor:
        """The rows of these ids: ids of any shape S, result (*S, d) float32."""
        found = kernel(rows, ids.reshape(-1, 1).contiguous())
        return found.view(*ids.shape, found.shape[1])

    return rows_of


QUICK: dict[Any, _Kernel] = {
    lookup: _rows_by(kernel) for lookup, kernel in _KERNELS.items() if kernel is not None
}
"""What computes each lookup's rows, where this torch has it."""


def bags_of(lookup: Any, rows: Tensor, ids: Tensor, mode: int) -> Tensor:
    """The sum (mode 0) or mean (1) of looked-up rows along the second dimension: ids (N, K), result (N, d) float32."""
    kernel, count = _KERNELS[lookup], ids.shape[1]
    if kernel is None or not count:
        found: Tensor = lookup(rows, ids)
        return found.mean(1) if mode else found.sum(1)
    total = kernel(rows, ids.contiguous())
    return total / count if mode else total
