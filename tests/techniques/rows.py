"""The smallest model of a table."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Rows"]


class Rows(nn.Module):
    """One table, looked up by ids of any shape."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.table(ids)
        return out
