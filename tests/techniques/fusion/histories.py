"""Histories of one request, padded with id 0 in any way, and two of them in one model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

T, IDS, WIDTH = 9, 40, 8


def batch(rows: int, padded: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Items (rows,), and one history on every row (rows, T), with padding at these positions."""
    generator = torch.Generator().manual_seed(rows + 7 * len(padded))
    history = torch.randint(1, IDS, (1, T), generator=generator)
    history[:, list(padded)] = 0
    return torch.randint(IDS, (rows,), generator=generator), history.expand(rows, T).contiguous()


def two_histories() -> tuple[Tensor, Tensor, Tensor]:
    """Items, and two histories with other padding."""
    return (*batch(3, range(2)), batch(3, range(4, T))[1])


class Two(nn.Module):
    """The sum of what two models make of an item and a history each."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, item: Tensor, one: Tensor, other: Tensor) -> Tensor:
        result: Tensor = self.a(item, one) + self.b(item, other)
        return result
