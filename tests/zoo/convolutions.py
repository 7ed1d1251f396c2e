"""Towers of convolutions: residual and separable blocks over pictures, filters over phrases."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Entry, ids


class Block(nn.Module):
    """Two convolutions around which the input goes, by one of its own where its shape changes."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Cover(nn.Module):
    """How well a picture suits a user: a residual tower, its last block separable by channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = Block(8, 8), Block(8, 16, 2)
        self.separable = nn.Sequential(
            nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6(inplace=True),
            nn.Conv2d(24, 24, 3, padding="same", groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6(inplace=True),
            nn.Conv2d(24, 12, 1, bias=False), nn.BatchNorm2d(12),
        )  # fmt: skip
        self.head, self.users = nn.Linear(12, 8), nn.Embedding(40, 8)

    def forward(self, user: Tensor, image: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.pool(self.stem(image))))
        x = F.adaptive_avg_pool2d(self.separable(x), 1)
        vector = self.head(torch.flatten(x, 1))
        return torch.sigmoid((self.users(user) * vector).sum(1))


class Phrases(nn.Module):
    """A search and a title by the same filters of several widths, each at its best position."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 12, padding_idx=0)
        self.near = nn.Sequential(
            nn.Conv1d(12, 10, 2, padding="same", bias=False), nn.BatchNorm1d(10), nn.ReLU()
        )
        self.convs = nn.ModuleList([nn.Conv1d(12, 10, 3), nn.Conv1d(12, 10, 3, dilation=2, groups=2)])
        self.project = nn.Sequential(nn.Dropout(0.3), nn.Linear(30, 8))

    def encode(self, words: Tensor) -> Tensor:
        x = self.words(words).transpose(1, 2)
        found = [self.near(x).amax(2), *(F.relu(conv(x)).max(2).values for conv in self.convs)]
        return F.normalize(self.project(torch.cat(found, 1)), dim=1)

    def forward(self, search: Tensor, title: Tensor) -> Tensor:
        return (self.encode(search) * self.encode(title)).sum(1) * 5


ENTRIES = (
    Entry(
        "cover", Cover, lambda n, r: (ids(r, n), torch.randn(n, 3, 10, 10, generator=r)), request=("user",)
    ),
    Entry(
        "phrases",
        Phrases,
        lambda n, r: (ids(r, n, 7, size=60), ids(r, n, 9, size=60) * (torch.arange(9) < 7)),
        request=("search",),
    ),
)
