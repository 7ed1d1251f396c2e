"""Sequences read at one position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.graph import is_call, value
from fastrec.techniques.fusion.one_position import read_one_position
from fastrec.techniques.fusion.positions import MOVES

from .rewrites import rewritten

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
STEPS, WIDTH = 5, 8

Function = Callable[[nn.ModuleList, Tensor], Tensor]
Choice = Callable[[Tensor, Tensor], Any]


class Read(nn.Module):
    """A function of x (B, T, d), and what is read of it."""

    def __init__(self, function: Function, read: Choice = lambda y, _: y[:, -1]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Embedding(9, WIDTH)])
        self.function, self.read = function, read

    def forward(self, x: Tensor) -> Any:
        return self.read(self.function(self.layers, x), x)


def attended(x: Tensor, heads: int = 2, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Attention of x to itself, heads by view and transpose."""
    batch, steps, width = x.shape
    y = x.view(batch, steps, heads, width // heads).transpose(1, 2)
    y = F.scaled_dot_product_attention(y, y.tanh(), y.sin(), attn_mask=mask, is_causal=causal)
    return y.transpose(1, 2).reshape(batch, steps, width)


def by_hand(x: Tensor, heads: int = 2) -> Tensor:
    """The same with heads in the batch, and the softmax written out."""
    batch, steps, _ = x.shape
    y = x.reshape(batch, steps, heads, -1).permute(0, 2, 1, 3).reshape(batch * heads, steps, -1)
    scores = torch.bmm(y, y.cos().transpose(1, 2)) / 3
    scores = scores.masked_fill(torch.ones(steps, steps, dtype=torch.bool).triu(1), float("-inf"))
    return (scores.softmax(-1) @ y).view(batch, heads, steps, -1).transpose(1, 2).flatten(2)


def steps_first(layers: nn.ModuleList, x: Tensor) -> Tensor:
    """(T, B, d), then (T * B, d), as `nn.MultiheadAttention` has it."""
    y = x.transpose(0, 1).reshape(-1, WIDTH)
    z: Tensor = layers[0](y)
    return z.view(STEPS, -1, WIDTH).transpose(0, 1)


FUNCTIONS: dict[str, Function] = {
    "pointwise": lambda m, x: torch.where(x > 0, x.sigmoid(), x * 2).masked_fill(x > 1, 0.5),
    "broadcast": lambda m, x: x + m[2].weight[:STEPS] * x.sum(-1, keepdim=True) + x.mean(1, keepdim=True),
    "linear": lambda m, x: m[0](x),
    "norm": lambda m, x: F.normalize(m[1](x), dim=-1),
    "softmax": lambda m, x: x.softmax(-1),
    "cast": lambda m, x: x.double().to(x.dtype),
    "embedding": lambda m, x: m[2]((x[..., 0] > 0).long() + 1),
    "sum": lambda m, x: torch.cat([x.view(-1, STEPS, 2, 4).sum(-2), x[..., :4]], -1),
    "cat": lambda m, x: torch.cat([x, x.tanh()], 2)[..., 4:12],
    "stack": lambda m, x: torch.stack([x.sin(), x.cos()], 1).sum(1),
    "first": lambda m, x: torch.cat([x[:, :1].tanh(), x.cos()], 1)[:, :STEPS],
    "last": lambda m, x: torch.cat([x.cos(), x[:, :1].tanh()], 1)[:, 1:],
    "steps first": steps_first,
    "split": lambda m, x: torch.cat(m[0](x).split([2, 6], -1)[::-1], -1),
    "unbind": lambda m, x: torch.stack(m[0](x).view(-1, STEPS, 2, 4).unbind(2), 3).flatten(2),
    "attention": lambda m, x: attended(x),
    "causal": lambda m, x: attended(x, causal=True),
    "masked": lambda m, x: attended(x, mask=(x[..., 0] > -9)[:, None, None]),
    "masked each": lambda m, x: attended(x, mask=torch.ones(STEPS, STEPS, dtype=torch.bool).tril()),
    "by hand": lambda m, x: by_hand(x),
    "residual": lambda m, x: (y := m[1](x)) + attended(y) + m[0](y).relu() * x,
}
READS: dict[str, Choice] = {
    "last": lambda y, x: y[:, -1],
    "first": lambda y, x: y[:, 0],
    "slice": lambda y, x: y[:, 2:3],
    "swapped": lambda y, x: y.transpose(0, 1)[3],
    "gather": lambda y, x: y.gather(
        1, (x[:, 0, 0] > 0).long().view(-1, 1, 1).expand(-1, -1, y.shape[2])
    ).squeeze(1),
    "index": lambda y, x: y[torch.arange(len(y)), (x[:, 0, 0] > 0).long() - 1],
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_answers(function: str, read: str) -> None:
    rewritten(read_one_position, Read(FUNCTIONS[function], READS[read]), torch.randn(7, STEPS, WIDTH))


KEYS = {"attention", "causal", "masked", "masked each", "by hand", "residual"}
"""Functions that need other positions too."""


@pytest.mark.parametrize("read", ["last", "slice", "swapped"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_only_one_position_is_computed(function: str, read: str) -> None:
    graph, changes = rewritten(
        read_one_position, Read(FUNCTIONS[function], READS[read]), torch.randn(7, STEPS, WIDTH)
    )
    assert changes
    wide = [node for node in graph.graph.nodes if node.op == "call_function" and node.target not in MOVES]
    wide = [node for node in wide if isinstance(node.meta["val"], Tensor) and STEPS in value(node).shape]
    assert bool(wide) == (function in KEYS)
    assert read_one_position(graph) == []


def test_positions_of_each_row() -> None:
    for read in ("gather", "index"):
        graph, changes = rewritten(
            read_one_position, Read(FUNCTIONS["residual"], READS[read]), torch.randn(7, STEPS, WIDTH)
        )
        assert "each row's position" in changes[0].detail
        attention = next(node for node in graph.graph.nodes if is_call(node, ATTENTION))
        assert value(attention).shape[-2] == 1


@pytest.mark.parametrize(
    "read",
    [
        lambda y, x: (y, y[:, -1]),
        lambda y, x: (y[:, 0], y[:, -1]),
        lambda y, x: y[:, -1] + y.mean(1),
        lambda y, x: y[:, 1:],
    ],
)
def test_what_is_read_elsewhere_stays(read: Choice) -> None:
    assert (
        rewritten(read_one_position, Read(FUNCTIONS["linear"], read), torch.randn(7, STEPS, WIDTH))[1] == []
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x.cumsum(1),
        lambda m, x: x.flip(1),
        lambda m, x: x.softmax(1),
        lambda m, x: F.layer_norm(x, (STEPS, WIDTH)),
        lambda m, x: F.conv1d(x, m[0].weight[:STEPS, :STEPS, None]),
        lambda m, x: x.transpose(1, 2),
        lambda m, x: x.sin().reshape(-1, WIDTH, STEPS),
    ],
)
def test_what_reads_other_positions_stays(function: Function) -> None:
    assert rewritten(read_one_position, Read(function), torch.randn(7, STEPS, WIDTH))[1] == []


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(FUNCTIONS)), min_size=1, max_size=4),
    st.sampled_from(sorted(READS)),
    st.booleans(),
)
def test_any_chain(names: list[str], read: str, both: bool) -> None:
    def chain(layers: nn.ModuleList, x: Tensor) -> Tensor:
        for name in names:
            x = x + FUNCTIONS[name](layers, x) if both else FUNCTIONS[name](layers, x)
        return x

    torch.manual_seed(0)
    rewritten(read_one_position, Read(chain, READS[read]), torch.randn(7, STEPS, WIDTH))
