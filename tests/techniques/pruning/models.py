"""Small models with hidden units, in the ways people write them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MODELS", "Mlp", "made", "numbers", "rng"]


def rng(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def numbers(rows: int, width: int = 6, seed: int = 1) -> Tensor:
    """Normal numbers (rows, width)."""
    return torch.randn(rows, width, generator=rng(seed))


def ids(rows: int, *steps: int, seed: int = 2) -> Tensor:
    """Uniform ids below 20."""
    return torch.randint(0, 20, (rows, *steps), generator=rng(seed))


class Mlp(nn.Module):
    """x (N, 6) -> `widths` units with `act` between -> (N, outputs)."""

    def __init__(self, *widths: int, outputs: int = 1, act: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        sizes = [6, *widths, outputs]
        self.maps = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self._act = act

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.maps[:-1]:
            x = self._act(layer(x))
        return self.maps[-1](x)  # type: ignore[no-any-return]


class Gated(nn.Module):
    """Two maps, one the gate of the other; a third whose halves gate each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 8)
        self.halves, self.out = nn.Linear(8, 16), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.hardswish(self.c(self.a(x) * torch.sigmoid(self.b(x))))
        return self.out(F.glu(self.halves(h), -1))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """x + f(x), three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.up = nn.ModuleList(nn.Linear(12, 16) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(16, 12) for _ in range(3))
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for up, down in zip(self.up, self.down, strict=True):
            h = h + down(F.gelu(up(h)))
        return torch.sigmoid(self.out(h))


class Siamese(nn.Module):
    """One tower for both sides, compared by their product."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 5)
        self.tower = nn.Sequential(
            nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4)
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.tower(self.table(a)) * self.tower(self.table(b))).sum(-1)  # type: ignore[no-any-return]


class Dice(nn.Module):
    """p x + (1 - p) slope x, with p from a norm over the batch's statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.slope = nn.BatchNorm1d(width, affine=False), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.norm(x.reshape(-1, x.shape[-1])).reshape(x.shape))
        return p * x + (1 - p) * self.slope * x


class Interest(nn.Module):
    """DIN: a network looks at each event beside the candidate."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.unit = nn.Sequential(nn.Linear(16, 10), Dice(10), nn.Linear(10, 6), Dice(6), nn.Linear(6, 1))
        self.top = nn.Sequential(nn.Linear(8, 12), Dice(12), nn.Linear(12, 1))

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        h = self.table(history)
        q = self.table(item)[:, None].expand_as(h)
        weights = self.unit(torch.cat([h, q, h - q, h * q], -1))
        pooled = (weights.masked_fill((history == 0)[..., None], 0) * h).sum(1)
        return self.top(torch.cat([pooled, self.table(item)], -1)).squeeze(1)  # type: ignore[no-any-return]


class Tasks(nn.Module):
    """MMoE: experts stacked and mixed for each of two tasks, by a product that names its axes."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU()) for _ in range(3)
        )
        self.gates = nn.ModuleList(nn.Linear(6, 3) for _ in range(2))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mixed = torch.stack([expert(x) for expert in self.experts], 1)
        weights = [gate(x).softmax(-1) for gate in self.gates]
        return tuple(
            head(torch.einsum("ne,ned->nd", weight, mixed))
            for head, weight in zip(self.heads, weights, strict=True)
        )


class Encoder(nn.Module):
    """A transformer's layer over ids, whose feed-forward part has hidden units."""

    def __init__(self, norm_first: bool = True) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(20, 8), nn.Linear(8, 1)
        self.layer = nn.TransformerEncoderLayer(8, 2, 20, batch_first=True, norm_first=norm_first)

    def forward(self, history: Tensor) -> Tensor:
        return self.out(self.layer(self.table(history)).mean(1))  # type: ignore[no-any-return]


class Beside(nn.Module):
    """Units of two maps and a table's rows in one row, with a norm and a slope for each; a gate of one unit."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.left, self.right = nn.Embedding(20, 4), nn.Linear(6, 9), nn.Linear(6, 7)
        self.gate, self.norm, self.mid = nn.Linear(6, 1), nn.BatchNorm1d(20), nn.Linear(20, 10)
        self.slope, self.out = nn.PReLU(10), nn.Linear(10, 1)

    def forward(self, x: Tensor, item: Tensor) -> Tensor:
        left = torch.relu(self.left(x)) * torch.sigmoid(self.gate(x))
        joined = torch.cat([left, self.table(item), torch.tanh(self.right(x))], 1)
        return self.out(self.slope(self.mid(self.norm(joined))))  # type: ignore[no-any-return]


class Flattened(nn.Module):
    """Units of each position, one after the other in the row that the next map reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.each, self.all = nn.Embedding(20, 4), nn.Linear(4, 8), nn.Linear(8 * 3, 10)
        self.out = nn.Linear(10, 1)

    def forward(self, history: Tensor) -> Tensor:
        return self.out(torch.relu(self.all(torch.relu(self.each(self.table(history))).flatten(1))))  # type: ignore[no-any-return]


class Crossed(nn.Module):
    """A cross network whose x0 a map writes, so that all its layers are one group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.cross = nn.Linear(6, 10), nn.ModuleList(nn.Linear(10, 10) for _ in range(2))
        self.down, self.up, self.out = nn.Linear(10, 4, bias=False), nn.Linear(4, 10), nn.Linear(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x0 = h = torch.relu(self.first(x))
        for layer in self.cross:
            h = x0 * layer(h) + h
        return self.out(x0 * self.up(self.down(h)) + h)  # type: ignore[no-any-return]


class Filtered(nn.Module):
    """A convolution, whose channels stay, under a tower."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.filters, self.tower = nn.Embedding(20, 4), nn.Conv1d(4, 8, 2), Mlp(12, 8)
        self.tower.maps[0] = nn.Linear(8, 12)

    def forward(self, history: Tensor) -> Tensor:
        return self.tower(self.filters(self.table(history).transpose(1, 2)).amax(-1))  # type: ignore[no-any-return]


class Computed(nn.Module):
    """A map whose bias is no constant reads units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shift, self.out = nn.Linear(6, 12), nn.Linear(6, 4), nn.Linear(4, 1)
        self.weight = nn.Parameter(torch.randn(4, 12))

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.out(torch.tanh(F.linear(torch.relu(self.first(x)), self.weight, self.shift(shift)[0])))  # type: ignore[no-any-return]


class Chosen(nn.Module):
    """Units chosen by others of the same place, and answers that are ids."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mid, self.out = (
            nn.Linear(6, 12),
            nn.Linear(6, 12),
            nn.Linear(12, 8),
            nn.Linear(8, 9),
        )
        self.scale = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        h = torch.where(a > 0, a, b * self.scale) + torch.maximum(a, b.exp().clamp(max=3))
        return self.out(F.silu(self.mid(h))).topk(3).indices  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "mlp": (lambda: Mlp(16, 12), lambda n: (numbers(n),)),
    "gated": (Gated, lambda n: (numbers(n),)),
    "residual": (Residual, lambda n: (numbers(n),)),
    "siamese": (Siamese, lambda n: (ids(n), ids(n, seed=3))),
    "interest": (Interest, lambda n: (ids(n, 5), ids(n, seed=3))),
    "tasks": (Tasks, lambda n: (numbers(n),)),
    "encoder": (Encoder, lambda n: (ids(n, 4),)),
    "post_norm": (lambda: Encoder(norm_first=False), lambda n: (ids(n, 4),)),
    "beside": (Beside, lambda n: (numbers(n), ids(n))),
    "flattened": (Flattened, lambda n: (ids(n, 3),)),
    "crossed": (Crossed, lambda n: (numbers(n),)),
    "filtered": (Filtered, lambda n: (ids(n, 4),)),
    "computed": (Computed, lambda n: (numbers(n), numbers(1, seed=4).expand(n, 6))),
    "chosen": (Chosen, lambda n: (numbers(n),)),
}
"""By name, a model and its batch of so many rows."""


def made(name: str) -> tuple[Any, Callable[[int], tuple[Tensor, ...]]]:
    """The model as if trained, and its batches."""
    build, batch = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model, batch
