"""What a rank computes, by the quickest calls that give the same bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from ...backends.coded_rows import QUICK
from ...backends.direct import direct, same_answer
from ...ops import INT4, INT8

__all__ = ["Quick", "quick"]

_TAIL = {INT8: torch.float32, INT4: torch.float16}
_ROWS = 64


class Quick:
    """A graph, from its first batch with rows on as `backends.direct` runs it: each operator by its quickest entry that gave the same bits."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.graph = gm
        self._run: Callable[..., tuple[Any, ...]] | None = None

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """The graph's outputs."""
        if self._run is None:
            if any(isinstance(tensor, Tensor) and not tensor.numel() for tensor in inputs):
                # What agrees on nothing is not known to agree.
                found: tuple[Any, ...] = self.graph(*inputs)
                return found
            self._run = direct(self.graph, inputs)
        return self._run(*inputs)


def quick(lookup: Any, row_bytes: int) -> Any:
    """What computes a lookup of rows held as small integers on this machine; any other operator itself."""
    return _compared(lookup, row_bytes) if lookup in _TAIL else lookup


@cache
def _compared(lookup: Any, row_bytes: int) -> Any:
    """The kernel, where it gives the operator's bits for drawn rows of this width."""
    kernel = QUICK.get(lookup)
    if kernel is None:
        return lookup
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randn(_ROWS, 2, generator=draw).to(_TAIL[lookup]).view(torch.uint8)
    shape = (_ROWS, row_bytes - numbers.shape[1])
    codes = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
    rows, ids = torch.cat([codes, numbers], 1), torch.arange(_ROWS).view(2, -1)
    return kernel if same_answer(lookup(rows, ids), kernel(rows, ids)) else lookup
