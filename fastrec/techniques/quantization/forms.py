"""The forms a float32 table can be held in: what a row takes, how it is written, and what looks it up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ops import INT4, INT8
from .row_codes import int4_rows, int8_rows

__all__ = ["FORMS", "Form"]


@dataclass(frozen=True)
class Form:
    """One form: its bytes for a row of d entries, the largest entry it holds, and whether rows have ranges."""

    label: str
    largest: float
    ranged: bool
    bytes_of: Callable[[int], int]
    code: Callable[[Tensor], Tensor]
    lookup: Any

    def read(self, rows: Tensor, ids: Tensor) -> Tensor:
        """The rows of these ids, in float32: as wide as the table, or one wider."""
        found: Tensor = self.lookup(rows, ids)
        return found.float()


def _even(table: Tensor) -> Tensor:
    """An odd row gets its last entry twice, which leaves its range as it is."""
    return torch.cat([table, table[:, -1:]], 1) if table.shape[1] % 2 else table


FORMS = {
    16: Form("float16", 65504.0, False, lambda d: 2 * d, Tensor.half, torch.ops.aten.embedding.default),
    8: Form("int8", 1e37, True, lambda d: d + 8, int8_rows, INT8),
    4: Form("int4", 65504.0, True, lambda d: (d + 1) // 2 + 4, lambda t: int4_rows(_even(t)), INT4),
}
"""Every form by its bits."""
