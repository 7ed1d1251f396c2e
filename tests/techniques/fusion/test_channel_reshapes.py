"""Reshapes around work on channels go, others stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrec.techniques.fusion.channel_reshapes import drop_channel_reshapes

from .rewrites import count, rewritten

aten = torch.ops.aten
RESHAPES = (aten.view.default, aten.reshape.default)


class Around(nn.Module):
    """Sequence (N, T, C) -> a scale and a shift of its last `width` numbers, between two reshapes."""

    def __init__(self, width: int, shape: tuple[int, ...], *, twice: bool = False) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(1))
        self.width, self.shape, self.twice = width, shape, twice

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.width)
        y = (flat * self.scale).sigmoid() + self.shift
        z = y.reshape(x.shape[0], *self.shape)
        return z * y.sum() if self.twice else z * x.reshape(z.shape)


def test_scale_and_shift_of_channels() -> None:
    graph, changes = rewritten(drop_channel_reshapes, Around(6, (5, 6)), torch.randn(4, 5, 6))
    assert len(changes) == 1 and count(graph, *RESHAPES) == 0


def test_channels_that_change_stay() -> None:
    graph, changes = rewritten(drop_channel_reshapes, Around(3, (5, 6)), torch.randn(4, 5, 6))
    assert not changes and count(graph, *RESHAPES) == 2


def test_another_shape_stays() -> None:
    graph, changes = rewritten(drop_channel_reshapes, Around(6, (6, 5)), torch.randn(4, 5, 6))
    assert not changes and count(graph, *RESHAPES) == 3


def test_what_others_read_stays() -> None:
    _, changes = rewritten(drop_channel_reshapes, Around(6, (5, 6), twice=True), torch.randn(4, 5, 6))
    assert not changes


class Rows(nn.Module):
    """A constant of as many rows as there are positions is no constant of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(5, 6) * self.scale
        return y.reshape(1, 5, 6) + x


def test_constants_of_other_dimensions_stay() -> None:
    model = Rows()
    _, changes = rewritten(drop_channel_reshapes, model, torch.randn(1, 5, 6), rows=(1,))
    assert not changes
