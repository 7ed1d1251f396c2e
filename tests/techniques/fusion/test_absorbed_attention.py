"""Attention of one query, without keys and values."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.graph import is_call, value
from fastrec.techniques.fusion.absorbed_attention import absorb_keys

from .rewrites import rewritten

aten = torch.ops.aten
Form = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, 1, d) to (B, H, T, d), mask (B, 1, 1, T)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def additive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    added = None if mask is None else torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=0.3)


def written(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) / 3
    return (scores if mask is None else scores.masked_fill(~mask, -1e9)).softmax(-1) @ v


def unnormalised(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Weights that do not sum to 1, as in DIN."""
    return torch.matmul((q @ k.transpose(-1, -2)).sigmoid() * (1 if mask is None else mask), v)


def in_the_batch(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Heads joined with the batch."""
    shape = q.shape
    q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    scores = torch.bmm(q * 0.2, k.transpose(1, 2)).view(*shape[:2], 1, -1)
    scores = scores if mask is None else scores + (~mask) * -30.0
    return torch.bmm(scores.view(-1, 1, k.shape[1]).softmax(2), v).view(shape)


FORMS: dict[str, Form] = {f.__name__: f for f in (kernel, additive, written, unnormalised, in_the_batch)}
CUTS = ("apart", "packed", "unbound", "steps first")


class Attention(nn.Module):
    """One query to a sequence (B, T, d), linears and heads cut in one of several ways."""

    def __init__(
        self, form: str, cut: str, heads: int = 2, width: int = 8, masked: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.form, self.cut, self.heads, self.masked = form, cut, heads, masked
        self.query = nn.Linear(width, width, bias=bias)
        self.key, self.value = (nn.Linear(width, width, bias=bias) for _ in range(2))
        self.both = nn.Linear(width, 2 * width, bias=bias)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q = self.split(self.query(x[:, -1:].tanh()))
        if self.cut == "apart":
            k, v = self.split(self.key(x)), self.split(self.value(x))
        elif self.cut == "packed":
            k, v = (self.split(y) for y in self.both(x).chunk(2, -1))
        elif self.cut == "unbound":
            y = self.both(x).reshape(x.shape[0], x.shape[1], 2, self.heads, -1)
            k, v = y.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            y = x.transpose(0, 1)
            k, v = (
                f(y).reshape(y.shape[0], y.shape[1], self.heads, -1).permute(1, 2, 0, 3)
                for f in (self.key, self.value)
            )
        mask = seen[:, None, None] if self.masked else None
        return FORMS[self.form](q, k, v, mask).transpose(1, 2).flatten(1)


def batch(rows: int = 5, steps: int = 7, width: int = 8) -> tuple[Tensor, Tensor]:
    """Rows with some steps masked, one of them with all."""
    rng = torch.Generator().manual_seed(0)
    seen = torch.rand(rows, steps, generator=rng) > 0.4
    seen[0], seen[1:, 0] = False, True
    return torch.randn(rows, steps, width, generator=rng), seen


def is_wide(node: torch.fx.Node, steps: int = 7) -> bool:
    """Whether it is a linear of every step."""
    return is_call(node, aten.linear.default) and steps in value(node).shape


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(CUTS),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.booleans(),
)
def test_every_form(form: str, cut: str, heads: int, masked: bool, bias: bool) -> None:
    model = Attention(form, cut, heads, masked=masked, bias=bias)
    graph, changes = rewritten(absorb_keys, model, *batch())
    assert changes
    assert not any(is_wide(node) for node in graph.graph.nodes)
    assert absorb_keys(graph) == []


def test_without_a_key_there_is_no_bias() -> None:
    for form in ("kernel", "additive"):
        graph, _ = rewritten(absorb_keys, Attention(form, "apart"), *batch())
        x, seen = batch()
        assert not seen[0].any() and not graph(x, seen)[0][0].any()


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 9), st.sampled_from([1, 2, 4]))
def test_only_where_it_saves(steps: int, heads: int) -> None:
    assume(steps != 5)
    _, changes = rewritten(absorb_keys, Attention("kernel", "apart", heads), *batch(steps=steps))
    width, channels = 8, 8 // heads
    before = steps * 8 * (width + 1)
    after = steps * heads * width + heads * channels * width
    assert bool(changes) == (after < before)


@pytest.mark.parametrize("reads", [lambda k: k.mean(1), lambda k: k[:, 1:].amax(1)])
def test_keys_that_others_read_stay(reads: Callable[[Tensor], Tensor]) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            k = self.key(x)
            return (x[:, :1] @ k.transpose(1, 2)).flatten(1) + reads(k)[:, :1]

    assert rewritten(absorb_keys, Other(), batch()[0])[1] == []


def test_several_queries_stay() -> None:
    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.key(x).transpose(1, 2)

    assert rewritten(absorb_keys, Full(), batch()[0])[1] == []
