"""Products with what the request gives are one product for all candidates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.graph import operator_name, value
from fastrec.techniques.fusion.shared_operands import share_operands

from .rewrites import rewritten, rewritten_request


def batch(rows: int = 5, width: int = 8) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    return torch.randn(rows, width, generator=rng), torch.randn(rows, 6, width, generator=rng)


class Explicit(nn.Module):
    """Softmax attention of a candidate to a history."""

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        weights = torch.softmax(torch.bmm(item.unsqueeze(1), history.transpose(1, 2)) / 8**0.5, -1)
        return torch.bmm(weights, history).squeeze(1)


class Left(nn.Module):
    """The request's matrix on the left."""

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        return torch.bmm(history, item.unsqueeze(2)).squeeze(2)


class Heads(nn.Module):
    """Several heads: by the fused kernel, or by products of four dimensions."""

    def __init__(self, fused: bool, masked: bool) -> None:
        super().__init__()
        self.fused, self.masked = fused, masked

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        q = item.unsqueeze(1).view(item.shape[0], 1, 2, 4).transpose(1, 2)
        k = history.view(history.shape[0], 6, 2, 4).transpose(1, 2)
        mask = (history.sum(-1) > -2)[:, None, None, :] if self.masked else None
        if self.fused:
            return F.scaled_dot_product_attention(q, k, k, attn_mask=mask).transpose(1, 2).flatten(1)
        scores = q @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e9)
        return (torch.softmax(scores, -1) @ k).transpose(1, 2).flatten(1)


class Weighted(nn.Module):
    """A weighted sum of keys, and a score for each key."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep, self.unit = keep, nn.Linear(8, 1)

    def forward(self, item: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.sigmoid(self.unit(history * item.unsqueeze(1)))
        scores = (item.unsqueeze(1) * history).sum(-1, keepdim=self.keep)
        return (weights * history).sum(1, keepdim=self.keep), scores


def repeated(graph: fx.GraphModule) -> list[str]:
    """Products that still read something of N rows and three dimensions and more on both sides."""
    found = []
    for node in graph.graph.nodes:
        if operator_name(node) in ("bmm", "matmul", "scaled_dot_product_attention"):
            several = [value(a) for a in node.args[:2]]
            if all(not isinstance(v.shape[0], int) and v.ndim > 2 for v in several):
                found.append(node.name)
    return found


MODELS = [
    Explicit(),
    Left(),
    *(Heads(fused, masked) for fused in (True, False) for masked in (True, False)),
    *(Weighted(keep) for keep in (True, False)),
]


@pytest.mark.parametrize("model", MODELS, ids=range(len(MODELS)))
def test_one_product_for_all_candidates(model: nn.Module) -> None:
    graph, changes = rewritten_request([share_operands], model, ["history"], *batch())
    assert changes and not repeated(graph)


def test_what_differs_by_row_stays() -> None:
    _, changes = rewritten(share_operands, Explicit(), *batch())
    assert not changes
