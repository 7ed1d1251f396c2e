"""What is the same in every row is computed at one row."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.graph import operator_name, value
from fastrec.techniques.fusion.once import compute_once

from .rewrites import asked_graph, count, rewritten_request

aten = torch.ops.aten


def batch(rows: int = 4, width: int = 6) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    return torch.randn(rows, width, generator=rng), torch.randn(rows, width, generator=rng)


def rows_of_products(graph: torch.fx.GraphModule) -> set[str]:
    """The numbers of rows at which linear maps are computed."""
    return {str(value(n).shape[0]) for n in graph.graph.nodes if operator_name(n) == "linear"}


class Towers(nn.Module):
    """A user tower with a norm and a residual, met by the candidates at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(6, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        h = torch.relu(self.one(user))
        h = self.norm(h + self.two(h))
        return (h[:, :6] * item).sum(-1)


def test_a_tower_of_the_request_runs_at_one_row() -> None:
    graph, _ = rewritten_request([compute_once], Towers(), ["user"], *batch())
    assert rows_of_products(graph) == {"1"}


class Merged(nn.Module):
    """Positions merged into rows and back, as a normalisation over all of them does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(3, 5), nn.BatchNorm1d(5)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        x = self.inner(history)
        x = self.norm(x.reshape(-1, 5)).view(history.shape[0], 4, 5)
        return x.sum((1, 2)) + item.sum(1)


def test_rows_merged_with_positions_and_back() -> None:
    rng = torch.Generator().manual_seed(0)
    graph, _ = rewritten_request(
        [compute_once],
        Merged(),
        ["history"],
        torch.randn(4, 4, 3, generator=rng),
        torch.randn(4, 2, generator=rng),
    )
    assert rows_of_products(graph) == {"1"}


class AcrossRows(nn.Module):
    """Softmax over the batch: not a matter of one row."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return torch.softmax(user, 0) + user / user.shape[0] + torch.cumsum(user, 0) + item


def test_what_acts_across_rows_stays() -> None:
    graph, _ = rewritten_request([compute_once], AcrossRows(), ["user"], *batch())
    shapes = {
        operator_name(n): str(value(n).shape[0])
        for n in graph.graph.nodes
        if n.op == "call_function" and operator_name(n) != "sym_size"
    }
    assert shapes["softmax"] != "1" and shapes["cumsum"] != "1"


class Recurrent(nn.Module):
    """A GRU over the history, its first state made from the number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 6, batch_first=True)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        _, state = self.gru(history)
        return (state[-1] * item).sum(-1)


def test_a_recurrence_runs_at_one_row() -> None:
    rng = torch.Generator().manual_seed(0)
    history, item = torch.randn(4, 5, 3, generator=rng), torch.randn(4, 6, generator=rng)
    graph, _ = rewritten_request([compute_once], Recurrent(), ["history"], history, item)
    (recurrence,) = (n for n in graph.graph.nodes if operator_name(n) == "gru")
    assert value(recurrence.args[0]).shape[0] == 1


class Bags(nn.Module):
    """Bags of several ids, cut by positions counted up to the number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 6)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        return (self.bag(history) * item).sum(-1)


def test_bags_of_the_request() -> None:
    rng = torch.Generator().manual_seed(0)
    history, item = torch.randint(20, (4, 5), generator=rng), torch.randn(4, 6, generator=rng)
    rewritten_request([compute_once], Bags(), ["history"], history, item)


def test_what_is_repeated_already_is_left() -> None:
    graph, _ = asked_graph(Towers(), ["user"], *batch())
    assert compute_once(graph) == []
    assert count(graph, aten.expand.default) <= 1


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(["linear", "relu", "norm", "residual", "transpose", "softmax"]),
        min_size=1,
        max_size=6,
    )
)
def test_any_chain_keeps_its_answer(chain: list[str]) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(len(chain))
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in chain)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            x = user.unsqueeze(1) * torch.arange(1.0, 4.0, dtype=user.dtype)[:, None]
            for kind, layer in zip(chain, self.layers, strict=True):
                if kind == "linear":
                    x = layer(x)
                elif kind == "relu":
                    x = torch.relu(x)
                elif kind == "norm":
                    x = F.layer_norm(x, (6,))
                elif kind == "residual":
                    x = x + layer(x)
                elif kind == "transpose":
                    x = torch.softmax(x @ x.transpose(1, 2), -1) @ x
                else:
                    x = torch.softmax(x, 1)
            return (x * item.unsqueeze(1)).sum((1, 2))

    graph, _ = rewritten_request([compute_once], Chain(), ["user"], *batch())
    assert rows_of_products(graph) <= {"1"}
