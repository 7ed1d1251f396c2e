"""Padding of equal rows is computed once, whatever the history; what differs there, or is read whole, stays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.backends import Eager, Inductor, OnnxRuntime, OpenVino
from fastrec.backends.base import Backend
from fastrec.capture import capture
from fastrec.graph import copy_graph, sweep
from fastrec.program import Program
from fastrec.request import Once
from fastrec.techniques import Fuse
from fastrec.techniques.fusion.padded_positions import skip_padding

from .histories import IDS, WIDTH, T, Two, batch, two_histories
from .rewrites import asked_program, count

aten = torch.ops.aten
PADDED: dict[str, Sequence[int]] = {
    "nothing": (),
    "the left": range(4),
    "the right, which is read": range(3, T),
    "the middle": range(2, 7),
    "both ends": (0, 1, 7, 8),
    "here and there": (1, 3, 4, 8),
    "all but one": range(1, T),
    "all": range(T),
}
Encode = Callable[["Encoder", Tensor], Tensor]


class Block(nn.Module):
    """Attention with residuals and norms before, positions x (N, T, d)."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.both = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.out, self.inner, self.outer = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
        normed = self.norms[0](x)
        key, value = self.both(normed).chunk(2, -1)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.query(normed), key, value)
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        result: Tensor = x + self.outer(F.relu(self.inner(self.norms[1](x))))
        return result


class Encoder(nn.Module):
    """history (N, T) and item (N,) -> score (N,); `encode` makes a vector (N, d) of the history."""

    causal: Tensor
    slopes: Tensor

    def __init__(self, encode: Encode, heads: int = 1) -> None:
        super().__init__()
        self.encode = encode
        self.items, self.places = nn.Embedding(IDS, WIDTH), nn.Parameter(torch.randn(T, WIDTH))
        self.blocks = nn.ModuleList(Block(heads) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.torch = nn.MultiheadAttention(WIDTH, heads, batch_first=True)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.register_buffer("causal", torch.ones(T, T, dtype=torch.bool).tril())
        away = (torch.arange(T)[:, None] - torch.arange(T)).abs()
        self.register_buffer("slopes", -torch.stack([away * 0.5**h for h in range(heads)]))

    def start(self, history: Tensor) -> tuple[Tensor, Tensor]:
        real = (history != 0).unsqueeze(-1)
        return (self.items(history) * 3 + self.places) * real, real

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        score: Tensor = (self.encode(self, history) * self.items(item)).sum(-1)
        return score


def sasrec(m: Encoder, history: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    x, real = m.start(history)
    for block in m.blocks:
        x = block(x, mask, causal) * real
    state: Tensor = m.norm(x)
    return state


def last(m: Encoder, history: Tensor) -> Tensor:
    return sasrec(m, history, m.causal)[:, -1]


def flagged(m: Encoder, history: Tensor) -> Tensor:
    return sasrec(m, history, causal=True)[:, -1]


def first(m: Encoder, history: Tensor) -> Tensor:
    """Every position sees all: BERT4Rec and the like."""
    return sasrec(m, history)[:, 0]


def inside(m: Encoder, history: Tensor) -> Tensor:
    return sasrec(m, history, m.causal)[:, 5]


def two(m: Encoder, history: Tensor) -> Tensor:
    state = sasrec(m, history, m.causal)
    return state[:, 2] + state[:, -2:-1].squeeze(1)


def sloped(m: Encoder, history: Tensor) -> Tensor:
    """Scores fall with distance."""
    return sasrec(m, history, m.slopes)[:, -1]


def unmasked_end(m: Encoder, history: Tensor) -> Tensor:
    """What is read at the end differs at padding."""
    x, real = m.start(history)
    x = m.blocks[0](x, m.causal) * real
    return m.blocks[1](x, m.causal)[:, -1]


def summed(m: Encoder, history: Tensor) -> Tensor:
    x, real = m.start(history)
    for block in m.blocks:
        x = block(x, m.causal) * real
    return x.sum(1) / (real.sum(1) + 1)


def filled(m: Encoder, history: Tensor) -> Tensor:
    padded = (history == 0).unsqueeze(-1)
    x = (m.items(history) + m.places).masked_fill(padded, 0.3)
    x = torch.where(~padded, m.blocks[0](x, m.causal), 1.0)
    return m.blocks[1](x, m.causal)[:, -1]


def ids_alone(m: Encoder, history: Tensor) -> Tensor:
    """Nothing but the ids tells positions apart, so padding has equal rows from the start."""
    x, mask = m.items(history), (history != 0).to(torch.float32).unsqueeze(-1)
    x = m.blocks[0](x, None)
    return (m.blocks[1](x, None) * mask).sum(1)


def torch_layer(m: Encoder, history: Tensor) -> Tensor:
    x, real = m.start(history)
    seen, _ = m.torch(m.norm(x), x, x, attn_mask=~m.causal, need_weights=False)
    x = (x + seen) * real
    return m.blocks[1](x, m.causal)[:, -1]


def hidden(m: Encoder, history: Tensor) -> Tensor:
    """Keys at padding are hidden, so that they may be anything."""
    x = m.items(history) + m.places
    shown = (history != 0)[:, None, None, :]
    for block in m.blocks:
        x = block(x, shown)
    return x[:, -1]


def hidden_keys(m: Encoder, history: Tensor) -> Tensor:
    x, padded = m.items(history) + m.places, history == 0
    seen, _ = m.torch(x, x, x, attn_mask=~m.causal, key_padding_mask=padded, need_weights=False)
    return m.blocks[1](x + seen, ~padded[:, None, None, :])[:, -1]


def averaged(m: Encoder, history: Tensor) -> Tensor:
    """Read at all positions: keys and values of the last block are padding's once, the rest is whole."""
    return sasrec(m, history, m.causal).mean(1)


def masked_once(m: Encoder, history: Tensor) -> Tensor:
    """What the first block makes of padding is read by the second, so the first has to be whole."""
    x, _ = m.start(history)
    for block in m.blocks:
        x = block(x, m.causal)
    return x[:, -1]


SKIPPED = (
    last,
    flagged,
    first,
    inside,
    two,
    sloped,
    unmasked_end,
    summed,
    filled,
    ids_alone,
    torch_layer,
    averaged,
    masked_once,
)
HIDDEN = (hidden, hidden_keys)


def differs(m: Encoder, history: Tensor) -> Tensor:
    """Positions are added after the mask."""
    x = m.items(history) * (history != 0).unsqueeze(-1) + m.places
    for block in m.blocks:
        x = block(x, m.causal)
    return x[:, -1]


def convolved(m: Encoder, history: Tensor) -> Tensor:
    x, real = m.start(history)
    x = m.conv(x.transpose(1, 2)).transpose(1, 2)
    return m.blocks[0](x, m.causal)[:, -1] + real.sum(1)


def finite(m: Encoder, history: Tensor) -> Tensor:
    """A mask that hides as far as scores allow."""
    x = m.items(history) + m.places
    shown = (history == 0)[:, None, None, :] * -1e4
    return m.blocks[0](x, shown)[:, -1]


def huge(m: Encoder, history: Tensor) -> Tensor:
    return sasrec(m, history, (~m.causal) * -1e4)[:, 5]


KEPT = (differs, convolved, finite, huge)


@cache
def asked(encode: Encode, heads: int = 1) -> tuple[Encoder, Program, Once]:
    """The model, and its graph of one request with everything else rewritten."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Encoder(encode, heads).eval()
    program, once = asked_program(model, ["history"], *batch(5, ()))
    return model, program.with_model(Fuse(without=("skip_padding",)).apply(program).model), once


def answers(
    call: Callable[..., tuple[Tensor, ...]], encode: Encode, heads: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a graph or session answers, and what the model does in float64."""
    model, program, once = asked(encode, heads)
    wide = copy.deepcopy(model).double()
    for rows in (1, 33):
        for padded in PADDED.values():
            given = batch(rows, padded)
            with torch.no_grad():
                right = wide(*given)
                # Where an attention sees nothing, 0 or NaN is up to its kernel: to stay as it was.
                right = right if right.isfinite().all() else program.model(*once.one(list(given)))[0].double()
                yield call(*once.one(list(given)))[0], right


def skipped(encode: Encode, heads: int = 1) -> tuple[fx.GraphModule, int]:
    graph = asked(encode, heads)[1].model
    assert isinstance(graph, fx.GraphModule)
    graph = copy_graph(graph)
    changes = skip_padding(graph)
    sweep(graph)
    return graph, len(changes)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("encode", (*SKIPPED, *HIDDEN), ids=lambda encode: encode.__name__)
def test_padding_is_computed_once(encode: Encode, heads: int) -> None:
    graph, changes = skipped(encode, heads)
    # One head forms no keys, and what it reads in their place is read at all positions here.
    once = 0 if heads == 1 and encode in (averaged, masked_once) else 1
    assert changes == once and count(graph, aten.nonzero.default) == once
    for got, right in answers(graph, encode, heads):
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("encode", KEPT, ids=lambda encode: encode.__name__)
def test_other_encoders_stay(encode: Encode) -> None:
    graph, changes = skipped(encode)
    assert changes == 0 and count(graph, aten.nonzero.default) == 0


def test_no_padding_is_looked_up_but_one() -> None:
    graph, _ = skipped(last)
    assert all(
        T not in node.meta["val"].shape for node in graph.graph.nodes if node.target is aten.embedding.default
    )


def test_nothing_is_skipped_where_each_row_has_its_own_history() -> None:
    graph = capture(Program.read(Encoder(last).eval(), batch(5, range(3)))).model
    assert isinstance(graph, fx.GraphModule)
    assert not skip_padding(copy_graph(graph))


def test_two_histories_have_two_lengths() -> None:
    model, given = Two(Encoder(last), Encoder(summed)).eval(), two_histories()
    program, once = asked_program(model, ["one", "other"], *given)
    applied = Fuse().apply(program)
    assert not applied.skipped and sum(change.rule == "skip padding" for change in applied.changes) == 2
    with torch.no_grad():
        right = copy.deepcopy(model).double()(*given)
    got = Eager().compile(program.with_model(applied.model))(*once.one(list(given)))[0]
    torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-5)


def test_it_is_a_trade() -> None:
    applied = Fuse().apply(asked(last)[1])
    assert "without skip padding" in Fuse().alternatives(applied.changes)


SESSIONS = [
    *((backend, last) for backend in (Eager(), OnnxRuntime(), OpenVino(), Inductor())),
    (OnnxRuntime(lookups="session"), inside),
    (Inductor(), sloped),
]


@pytest.mark.parametrize(
    ("backend", "encode"),
    SESSIONS,
    ids=[f"{backend.label}-{encode.__name__}" for backend, encode in SESSIONS],
)
def test_one_session_serves_every_length(backend: Backend, encode: Encode) -> None:
    if backend.unavailable():
        pytest.skip(str(backend.unavailable()))
    _, program, _ = asked(encode)
    applied = Fuse().apply(program)
    assert any(change.rule == "skip padding" for change in applied.changes)
    session = backend.compile(program.with_model(applied.model))
    for got, right in answers(session, encode):
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-5, equal_nan=True)
