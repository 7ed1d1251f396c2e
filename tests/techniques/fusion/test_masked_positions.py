"""Masked positions are skipped where their weight is zero, whatever the mask; elsewhere they stay."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.backends import Eager, Inductor, OnnxRuntime, OpenVino
from fastrec.backends.base import Backend
from fastrec.capture import capture
from fastrec.cost import cost
from fastrec.graph import copy_graph
from fastrec.program import Program
from fastrec.request import Once
from fastrec.techniques import Fuse
from fastrec.techniques.fusion.masked_positions import skip_masked

from .histories import IDS, WIDTH, T, Two, batch, two_histories
from .rewrites import asked_program, count

aten = torch.ops.aten
PADDED: dict[str, Sequence[int]] = {
    "nothing": (),
    "the left": range(4),
    "the right": range(3, T),
    "the middle": range(2, 7),
    "all but one": range(1, T),
    "all": range(T),
}
Pool = Callable[["Unit", Tensor, Tensor, Tensor], Tensor]


class Dice(nn.Module):
    """BatchNorm over flattened positions, and the gate it makes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.alpha = nn.Parameter(torch.randn(width))
        assert self.norm.running_var is not None
        nn.init.uniform_(self.norm.running_var, 0.3, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        gate = torch.sigmoid(self.norm(flat)).reshape(x.shape)
        return gate * x + self.alpha * (1 - gate) * x


class Unit(nn.Module):
    """A candidate weighs the positions of a history (N, T); `pool` sums them up."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.items = nn.Embedding(IDS, WIDTH)
        self.first, self.second = nn.Linear(4 * WIDTH, 12), nn.Linear(12, 1)
        self.dice, self.slope = Dice(12), nn.PReLU()
        self.positions = nn.Parameter(torch.randn(T, WIDTH))
        self.encoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.gate = nn.Linear(WIDTH, 1)
        self.head = nn.Linear(2 * WIDTH, 1)

    def scores(self, query: Tensor, keys: Tensor, act: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(N, T, 1)."""
        each = query.unsqueeze(1).expand(-1, keys.shape[1], -1)
        x: Tensor = self.first(torch.cat([each, keys, each - keys, each * keys], -1))
        scores: Tensor = self.second((act or self.dice)(x))
        return scores

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        query, keys = self.items(item), self.items(history)
        pooled = self.pool(self, query, keys, history == 0)
        score: Tensor = self.head(torch.cat([pooled, query], -1)).squeeze(-1)
        return score


def zeros(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return (m.scores(q, k).masked_fill(mask.unsqueeze(-1), 0.0) * k).sum(1)


def product(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    weights = m.scores(q, k, m.slope).squeeze(-1).masked_fill(mask, 0.0)
    return (weights.unsqueeze(1) @ k).squeeze(1)


def softmax(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    weights = m.scores(q, k, torch.tanh).squeeze(-1).masked_fill(mask, -math.inf).softmax(-1)
    return (weights.unsqueeze(-1) * k).sum(1)


def places(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return zeros(m, q, k + m.positions, mask)


def encoded(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return zeros(m, q, m.encoder(k)[0], mask)


def shared(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """The keys are read at all positions as well."""
    return zeros(m, q, k, mask) + k.tanh().sum(1)


def multiplied(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return (m.scores(q, k) * (~mask).float().unsqueeze(-1) * k).sum(1)


def chosen(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return (torch.where(~mask.unsqueeze(-1), m.scores(q, k), 0.0) * k).sum(1)


def attended(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Each position sees all others, padding included, before it is weighed."""
    seen = ((q.unsqueeze(1) * k) @ k.transpose(1, 2)).softmax(-1) @ k
    return (m.gate(seen).masked_fill(mask.unsqueeze(-1), 0.0) * k).sum(1)


SKIPPED = (attended, multiplied, chosen, zeros, product, softmax, places, encoded, shared)


def finite(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    weights = m.scores(q, k).squeeze(-1).masked_fill(mask, -1e9).softmax(-1)
    return (weights.unsqueeze(-1) * k).sum(1)


def zeros_before_softmax(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return (m.scores(q, k).masked_fill(mask.unsqueeze(-1), 0.0).softmax(1) * k).sum(1)


def seen_by_others(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    scores = m.scores(q, k)
    return (scores.masked_fill(mask.unsqueeze(-1), 0.0) * k).sum(1) + scores.sum(1)


def mixed(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    scores = m.scores(q, k).cumsum(1)
    return (scores.masked_fill(mask.unsqueeze(-1), 0.0) * k).sum(1)


def no_sum(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    weights = m.scores(q, k).masked_fill(mask.unsqueeze(-1), 0.0)
    return F.relu(weights * k).amax(1)


def cheap(_: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    weights = (q.unsqueeze(1) * k).sum(-1).masked_fill(mask, 0.0)
    return (weights.unsqueeze(-1) * k).sum(1)


def weighted(m: Unit, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Weights of positions that are no mask."""
    return (m.scores(q, k) * m.positions[:, :1] * k).sum(1) + mask.sum(1, keepdim=True)


KEPT = (weighted, finite, zeros_before_softmax, seen_by_others, mixed, no_sum, cheap)


@cache
def asked(pool: Pool) -> tuple[Unit, Program, Once]:
    """The model, and its graph of one request with everything else rewritten."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Unit(pool).eval()
    program, once = asked_program(model, ["history"], *batch(5, ()))
    return model, program.with_model(Fuse(without=("skip_masked",)).apply(program).model), once


def answers(call: Callable[..., tuple[Tensor, ...]], pool: Pool) -> Iterator[tuple[Tensor, Tensor]]:
    """What a graph or session answers, and what the model does in float64."""
    model, _, once = asked(pool)
    wide = copy.deepcopy(model).double()
    for rows in (1, 2, 33):
        for padded in PADDED.values():
            given = batch(rows, padded)
            with torch.no_grad():
                yield call(*once.one(list(given)))[0], wide(*given)


def skipped(pool: Pool) -> tuple[fx.GraphModule, int]:
    graph = asked(pool)[1].model
    assert isinstance(graph, fx.GraphModule)
    graph = copy_graph(graph)
    return graph, len(skip_masked(graph))


@pytest.mark.parametrize("pool", SKIPPED, ids=lambda pool: pool.__name__)
def test_real_positions_alone_are_computed(pool: Pool) -> None:
    graph, changes = skipped(pool)
    assert changes == 1 and count(graph, aten.nonzero.default) == 1
    graph.recompile()
    for got, right in answers(graph, pool):
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("pool", KEPT, ids=lambda pool: pool.__name__)
def test_other_positions_stay(pool: Pool) -> None:
    graph, changes = skipped(pool)
    assert changes == 0 and count(graph, aten.nonzero.default) == 0


def test_ids_are_picked_so_that_no_padding_is_looked_up() -> None:
    graph, _ = skipped(zeros)
    graph.graph.eliminate_dead_code()
    picked = [node for node in graph.graph.nodes if node.target is aten.index_select.default]
    assert len(picked) == 1 and picked[0].args[0].op == "placeholder"
    assert all(
        T not in node.meta["val"].shape for node in graph.graph.nodes if node.target is aten.embedding.default
    )


def test_nothing_is_skipped_where_each_row_has_its_own_mask() -> None:
    model = Unit(zeros).eval()
    graph = capture(Program.read(model, batch(5, range(3)))).model
    assert isinstance(graph, fx.GraphModule)
    assert not skip_masked(copy_graph(graph))


def test_two_histories_have_two_lengths() -> None:
    model, given = Two(Unit(zeros), Unit(softmax)).eval(), two_histories()
    program, once = asked_program(model, ["one", "other"], *given)
    applied = Fuse().apply(program)
    assert not applied.skipped and sum(change.rule == "skip masked" for change in applied.changes) == 2
    assert isinstance(applied.model, fx.GraphModule)
    lengths = {
        str(node.meta["val"].shape)
        for node in applied.model.graph.nodes
        if node.target is aten.nonzero.default
    }
    assert len(lengths) == 2
    with torch.no_grad():
        right = copy.deepcopy(model).double()(*given)
    session = Eager().compile(program.with_model(applied.model))
    torch.testing.assert_close(session(*once.one(list(given)))[0].double(), right, rtol=1e-5, atol=1e-5)


def test_it_is_a_trade_and_counts_at_its_most() -> None:
    _, program, _ = asked(zeros)
    applied = Fuse().apply(program)
    assert "without skip masked" in Fuse().alternatives(applied.changes)
    made = program.with_model(applied.model)
    assert cost(made, 100).multiply_adds == cost(program, 100).multiply_adds


SESSIONS = [
    *((Eager(), pool) for pool in (zeros, softmax)),
    *(
        (backend, zeros)
        for backend in (OnnxRuntime(), OnnxRuntime(lookups="session"), OpenVino(), Inductor())
    ),
]


@pytest.mark.parametrize(
    ("backend", "pool"), SESSIONS, ids=[f"{backend.label}-{pool.__name__}" for backend, pool in SESSIONS]
)
def test_one_session_serves_every_length(backend: Backend, pool: Pool) -> None:
    if backend.unavailable():
        pytest.skip(str(backend.unavailable()))
    _, program, _ = asked(pool)
    applied = Fuse().apply(program)
    assert any(change.rule == "skip masked" for change in applied.changes)
    session = backend.compile(program.with_model(applied.model))
    for got, right in answers(session, pool):
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-5, equal_nan=True)
