"""What the examples' models of histories share: averages and attention, the loss of two towers, a pass of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def averaged(rows: Tensor, ids: Tensor) -> Tensor:
    """The mean (N, d) of the rows (N, T, d) of ids (N, T), those of id 0 left out."""
    real = (ids > 0).unsqueeze(2)
    return (rows * real).sum(1) / real.sum(1).clamp(min=1)


class Attention(nn.Module):
    """Each item of a history counts by how it bears on the item that is shown."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Linear(4 * width, 36), nn.PReLU(), nn.Linear(36, 1))

    def forward(self, bought: Tensor, shown: Tensor, padding: Tensor) -> Tensor:
        """Histories (N, T, d), items (N, d) and where there is nothing (N, T) -> what they come to (N, d)."""
        beside = shown.unsqueeze(1).expand_as(bought)
        weights = self.unit(torch.cat([bought, beside, bought - beside, bought * beside], 2))
        return (weights.masked_fill(padding.unsqueeze(2), 0.0) * bought).sum(1)


def among(people: Tensor, items: Tensor, place: Tensor, often: Tensor) -> Tensor:
    """The log loss of each one's own among the items (B, d) of a batch, each less the log of how often it is in one."""
    return nn.functional.cross_entropy(people @ items.T - often.log(), place)


def passed(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    rate: float,
    size: int = 512,
    most: int | None = None,
) -> None:
    """A pass of Adam over `count` rows in random order, some at a time: of `most` batches, if that is said."""
    learned = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=rate, weight_decay=1e-4)
    for chosen in torch.randperm(count).split(size)[:most]:
        error = loss(chosen)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    model.eval()


def apart(part: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Nine tenths of the rows to learn from, and one to judge by."""
    held = torch.rand(len(part[0])) < 0.1
    return [x[~held] for x in part], [x[held] for x in part]
