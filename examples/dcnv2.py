"""A DCNv2 of the fields of a booking."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DCNv2(nn.Module):
    """Cross layers and then a tower, over one table per field."""

    def __init__(self, sizes: list[int], numbers: int, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.norm = nn.BatchNorm1d(numbers)
        joined = len(sizes) * width + numbers
        self.crosses = nn.ModuleList(nn.Linear(joined, joined) for _ in range(depth))
        layers: list[nn.Module] = []
        for before, after in ((joined, 256), (256, 128)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(0.2)]
        self.tower = nn.Sequential(*layers, nn.Linear(128, 1))
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.01)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        """The chance of the label, (N,)."""
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        first = crossed = torch.cat([*rows, self.norm(numbers)], 1)
        for cross in self.crosses:
            crossed = first * cross(crossed) + crossed
        return torch.sigmoid(self.tower(crossed)).squeeze(1)
