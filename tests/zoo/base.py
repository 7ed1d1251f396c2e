"""An entry of the zoo: a model, and batches for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fastrec.declared import Declared

__all__ = ["SIZES", "Entry", "ids", "make", "tower"]

SIZES = (0, 1, 2, 3, 33, 1000)
"""Numbers of rows to serve."""


@dataclass(frozen=True)
class Entry:
    """`build()` makes the model, `batch(rows, rng)` a batch; `entry` is the method that serves.

    `capturable` says whether the data flow can be recorded, `request` which features a request shares. `sizes` are the numbers of rows the model itself takes.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int, torch.Generator], Any]
    entry: str = "forward"
    capturable: bool = True
    request: Declared = field(default=(), hash=False)
    sizes: tuple[int, ...] = SIZES


def make(entry: Entry, seed: int = 0) -> nn.Module:
    """The model as if trained: seeded weights, used normalisations, zero padding rows, evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = entry.build().eval()
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
        with torch.no_grad():
            for parameter in model.parameters():
                # What starts as a constant (biases, scales, slopes) would hide whatever forgets it or its sign.
                if bool((parameter == parameter.flatten()[0]).all()):
                    parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return model


def ids(rng: torch.Generator, *shape: int, size: int = 40, low: int = 0) -> Tensor:
    """Uniform ids."""
    return torch.randint(low, size, shape, generator=rng)


def tower(*widths: int, norm: bool = False) -> nn.Sequential:
    """Linear layers with ReLU and dropout between, the batch normalised before each ReLU if `norm`."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [
            nn.Linear(before, after),
            *([nn.BatchNorm1d(after)] if norm else []),
            nn.ReLU(),
            nn.Dropout(0.2),
        ]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
