"""Layers of the generated models, in the ways people write them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .describe import Stack

__all__ = ["Layers", "compared", "triangle"]


class Dice(nn.Module):
    """The activation of DIN, over the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        gate = torch.sigmoid(self.norm(flat)).view_as(x)
        return gate * x + self.alpha * (1 - gate) * x


class BatchNorm(nn.BatchNorm1d):
    """Over the last dimension of anything."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        if input.dim() == 2:
            return super().forward(input)
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


def normed(kind: str, width: int) -> nn.Module:
    """A norm by name."""
    return {"": nn.Identity, "batch": BatchNorm, "layer": nn.LayerNorm}[kind](*([width] if kind else []))


def activated(kind: str, width: int) -> nn.Module:
    """An activation by name."""
    plain: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU, "leaky": nn.LeakyReLU, "prelu": nn.PReLU,
    }  # fmt: skip
    return Dice(width) if kind == "dice" else plain[kind]()


class Layers(nn.Module):
    """The layers of a stack; `last` appends one of that width."""

    def __init__(self, width: int, stack: Stack, last: int = 0) -> None:
        super().__init__()
        widths = (*stack.widths, *([last] if last else []))
        self.first = normed(stack.first, width)
        self.linears, self.between = nn.ModuleList(), nn.ModuleList()
        self.residual = stack.residual
        for place, after in enumerate(widths):
            self.linears.append(nn.Linear(width, after, bias=place % 2 == 0 or not stack.norm))
            if place < len(widths) - 1:
                parts = [normed(stack.norm, after), activated(stack.act, after)]
                self.between.append(nn.Sequential(*parts, *([nn.Dropout(0.3)] if stack.dropout else [])))
            else:
                self.between.append(nn.Identity())
            width = after
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for linear, between in zip(self.linears, self.between, strict=True):
            y = between(linear(x))
            x = x + y if self.residual and x.shape == y.shape else y
        return x


def triangle(count: int) -> list[tuple[int, int]]:
    """Pairs of fields."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def compared(form: str, left: Tensor, right: Tensor) -> Tensor:
    """Two vectors (N, k) as one number each (N, 1)."""
    if form == "cosine":
        return F.cosine_similarity(left, right, dim=-1, eps=1e-4).unsqueeze(1)
    if form == "normalised":
        left, right = F.normalize(left, dim=-1, eps=1e-4), F.normalize(right, dim=-1, eps=1e-4)
    if form == "bmm":
        return torch.bmm(left.unsqueeze(1), right.unsqueeze(2)).squeeze(2)
    if form == "einsum":
        return torch.einsum("nd,nd->n", left, right)[:, None]
    return (left * right).sum(dim=1, keepdim=True)
