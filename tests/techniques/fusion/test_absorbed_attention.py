"""Attention of one query, or of one head, without keys and values."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.graph import is_call, sweep, value
from fastrec.techniques.base import Change
from fastrec.techniques.fusion.absorbed_attention import absorb_keys
from fastrec.techniques.fusion.chains import merge_chains
from fastrec.techniques.fusion.constants import fold_constants

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


def test_several_queries_that_no_map_gives_stay() -> None:
    class Full(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.key(x).transpose(1, 2)

    assert rewritten(absorb_keys, Full(), batch()[0])[1] == []


def causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def constant_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Each query sees those before it and itself."""
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.ones(q.shape[-2], k.shape[-2]).tril().bool()
    )


def scaled_first(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    scores = (q * 0.3) @ k.transpose(-1, -2)
    return (scores if mask is None else scores + (~mask) * -30.0).softmax(-1) @ v


ONE_HEAD = {
    f.__name__: f for f in (kernel, additive, written, unnormalised, causal, constant_mask, scaled_first)
}


class OneHead(nn.Module):
    """Every step's query to a sequence (B, T, d), one head, and a map of what it gives."""

    def __init__(
        self, form: str, cut: str, dims: int = 3, masked: bool = True, bias: bool = True, out: bool = True
    ) -> None:
        super().__init__()
        self.form, self.cut, self.dims, self.masked = form, cut, dims, masked
        self.query, self.key, self.value = (nn.Linear(8, 8, bias=bias) for _ in range(3))
        self.all = nn.Linear(8, 24, bias=bias)
        self.out = nn.Linear(8, 8, bias=bias) if out else nn.Identity()

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        if self.cut == "packed":
            q, k, v = self.all(x).chunk(3, -1)
        elif self.cut == "steps first":
            y = x.transpose(0, 1)
            q, k, v = (f(y).transpose(0, 1) for f in (self.query, self.key, self.value))
        else:
            q, k, v = self.query(x.tanh()), self.key(x), self.value(x)
        mask = seen[:, None]
        if self.dims == 4:
            q, k, v, mask = q[:, None], k[:, None], v[:, None], mask[:, None]
        y = ONE_HEAD[self.form](q, k, v, mask if self.masked else None)
        y = y.squeeze(1) if self.dims == 4 else y
        answer: Tensor = self.out(y.transpose(0, 1)).transpose(0, 1)
        return answer


def absorbed(gm: fx.GraphModule) -> list[Change]:
    """Absorbs, then merges maps of maps."""
    fold_constants(gm)
    changes = absorb_keys(gm)
    sweep(gm)
    assert absorb_keys(gm) == []
    return [*changes, *merge_chains(gm)] if changes else []


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(ONE_HEAD)),
    st.sampled_from(("apart", "packed", "steps first")),
    st.sampled_from([3, 4]),
    st.booleans(),
    st.booleans(),
)
def test_every_query_of_one_head(form: str, cut: str, dims: int, masked: bool, bias: bool) -> None:
    graph, changes = rewritten(absorbed, OneHead(form, cut, dims, masked, bias), *batch())
    assert changes[0].rule == "absorb keys"
    wide = [value(node).shape[-1] for node in graph.graph.nodes if is_wide(node)]
    # One map on each side, and where keys keep a bias, what it adds to a query's scores.
    assert [width for width in wide if width != 1] == [8, 8] and len(wide) <= 3


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(sorted(ONE_HEAD)), st.sampled_from(("apart", "packed")), st.booleans())
def test_without_a_map_of_the_result(form: str, cut: str, masked: bool) -> None:
    graph, changes = rewritten(absorbed, OneHead(form, cut, masked=masked, out=False), *batch())
    assert changes and sum(is_wide(node) and value(node).shape[-1] != 1 for node in graph.graph.nodes) == 2


def test_no_key_and_no_bias_for_any_query() -> None:
    x, seen = batch()
    model = OneHead("kernel", "apart", 4).eval()
    graph, _ = rewritten(absorbed, model, x, seen)
    without = graph(x, seen)[0][0]
    torch.testing.assert_close(without, model.out.bias.expand_as(without))


@pytest.mark.parametrize("form", sorted(ONE_HEAD))
def test_several_queries_of_several_heads_stay(form: str) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
            self.out = nn.Linear(8, 8)

        def forward(self, x: Tensor, seen: Tensor) -> Tensor:
            q, k, v = (f(x).view(x.shape[0], -1, 2, 4).transpose(1, 2) for f in self.maps)
            y = ONE_HEAD[form](q, k, v, seen[:, None, None])
            answer: Tensor = self.out(y.transpose(1, 2).flatten(2))
            return answer

    assert rewritten(absorb_keys, Heads(), *batch())[1] == []


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(2, 12), st.integers(2, 12), st.booleans())
def test_one_head_only_where_it_saves(queries: int, keys: int, width: int, channels: int, read: bool) -> None:
    class Cross(nn.Module):
        """Queries from one sequence, keys and values from another."""

        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(5, channels)
            self.key, self.value = (nn.Linear(width, channels) for _ in range(2))
            self.out = nn.Linear(channels, 6) if read else nn.Tanh()

        def forward(self, n: Tensor, x: Tensor) -> Tensor:
            y = F.scaled_dot_product_attention(self.query(n), self.key(x), self.value(x))
            answer: Tensor = self.out(y)
            return answer

    rows = torch.randn(5, queries, 5), torch.randn(5, keys, width)
    graph, changes = rewritten(absorbed, Cross(), *rows)
    pairs = queries * keys
    before = queries * 5 * channels + 2 * keys * width * channels + 2 * pairs * channels
    theirs = queries * min(5 * width, 5 * channels + channels * width)
    ours = queries * channels * width
    if read:
        before += queries * channels * 6
        ours = queries * min(6 * width, 6 * channels + channels * width)
    after = theirs + ours + 2 * pairs * width
    assert bool(changes) == (after < before)
    assert multiply_adds(graph, 5) == 5 * min(before, after)


def multiply_adds(graph: fx.GraphModule, rows: int) -> int:
    """Those of linear maps and attentions, at this many rows."""
    total = 0
    for node in graph.graph.nodes:
        if is_call(node, aten.linear.default):
            total += rows * math.prod(value(node).shape[1:]) * value(node.args[0]).shape[-1]
        elif is_call(node, aten.scaled_dot_product_attention.default):
            queries, width = value(node.args[0]).shape[-2:]
            total += 2 * rows * queries * value(node.args[1]).shape[-2] * width
    return total


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_a_module_of_one_head(weights: bool, normed: bool) -> None:
    class Module(nn.Module):
        """torch's own attention, some keys of each row padding."""

        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 1, batch_first=True)
            nn.init.normal_(self.attention.in_proj_bias)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor, padded: Tensor) -> Tensor:
            q = self.norm(x) if normed else x
            padding = None if weights else padded
            answer: Tensor = self.attention(q, x, x, key_padding_mask=padding, need_weights=weights)[0]
            return answer

    x, seen = batch()
    graph, changes = rewritten(absorbed, Module(), x[1:], ~seen[1:])
    assert changes and sum(is_wide(node) for node in graph.graph.nodes) == 2


def test_one_head_after_another() -> None:
    class Stack(nn.Module):
        """The second's keys, values and queries are maps of what the first gives, with nothing between."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 24), nn.Linear(8, 24)

        def forward(self, x: Tensor, seen: Tensor) -> Tensor:
            for f in (self.first, self.second):
                q, k, v = f(x).chunk(3, -1)
                x = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])
            return x

    assert rewritten(absorbed, Stack(), *batch())[1]


def test_queries_that_others_read_stay_as_they_are() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            q = self.query(x)
            answer: Tensor = self.out((q @ self.key(x).transpose(1, 2)).softmax(-1) @ x) + q
            return answer

    assert rewritten(absorbed, Read(), batch()[0])[1] == []
