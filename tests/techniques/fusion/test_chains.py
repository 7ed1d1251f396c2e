"""Linear maps of linear maps, with moves between."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from fastrec.techniques.fusion.chains import merge_chains
from fastrec.techniques.fusion.dot_products import multiply_by_vector
from fastrec.techniques.fusion.split_linears import split_linears

from .rewrites import count, rewritten, rewritten_request

LINEAR = torch.ops.aten.linear.default
Move = Callable[[Tensor], Tensor]

# Of four vectors to a row, (N, a, b, h) with a b = 4: each moves them, the channels last and the rows first again.
MOVES: dict[str, Move] = {
    "view": lambda y: y.reshape(y.shape[0], 2, -1, y.shape[-1]),
    "transpose": lambda y: y.transpose(1, 2),
    "permute": lambda y: y.permute(2, 1, 0, 3).transpose(0, -2),
    "rows last": lambda y: y.transpose(0, 2).flatten(0, 1).unflatten(0, (-1, y.shape[1])).transpose(0, 2),
    "squeeze": lambda y: y.flatten(1, 2).unsqueeze(1).unsqueeze(-2).squeeze(-2),
    "flatten": lambda y: y.flatten(0, 2).reshape(y.shape[0], 4, 1, -1),
    "scaled": lambda y: y * 0.25,
    "divided": lambda y: y / 3,
}


class Chain(nn.Module):
    """Two linears with moves between, (N, 4, a) to (N, 4 c)."""

    def __init__(self, a: int, h: int, c: int, moves: list[str], first: bool = True, second: bool = True):
        super().__init__()
        self.inner, self.outer = nn.Linear(a, h, bias=first), nn.Linear(h, c, bias=second)
        self.moves = moves

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x.unsqueeze(2))
        for name in self.moves:
            y = MOVES[name](y)
        z: Tensor = self.outer(y)
        return z.tanh().reshape(x.shape[0], -1)


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(*[st.integers(1, 8)] * 3),
    st.lists(st.sampled_from(sorted(MOVES)), max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_one_where_it_saves(sizes: tuple[int, int, int], moves: list[str], first: bool, second: bool) -> None:
    a, h, c = sizes
    graph, changes = rewritten(merge_chains, Chain(a, h, c, moves, first, second), torch.randn(5, 4, a))
    merged = count(graph, LINEAR) == 1
    assert merged == bool(changes)
    if h > 1 or not moves:
        assert merged == (a * c <= a * h + h * c)


def test_a_bottleneck_stays() -> None:
    model = nn.Sequential(nn.Linear(64, 2), nn.Linear(2, 64))
    assert rewritten(merge_chains, model, torch.randn(3, 64))[1] == []


def test_three_are_one() -> None:
    model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(3)])
    graph, changes = rewritten(merge_chains, model, torch.randn(3, 6))
    assert len(changes) == 2 and count(graph, LINEAR) == 1


class Between(nn.Module):
    """Two linears of 4 channels with something between, x (N, 3, 4)."""

    def __init__(self, between: Move) -> None:
        super().__init__()
        self.between = between
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.b(self.between(self.a(x)))
        return answer


@pytest.mark.parametrize(
    "between",
    [
        lambda y: torch.cat([y, y], 1).view(-1, 4),
        lambda y: y.reshape(y.shape[0], -1).view(-1, 3, 2, 2).transpose(2, 3).reshape(-1, 3, 4),
        lambda y: y[:, :, :, None].expand(-1, -1, -1, 4),
        lambda y: y.relu(),
        lambda y: y * y,
        lambda y: y * 0.0,
        lambda y: y / math.inf,
        lambda y: y[:, :1].expand(-1, 3, -1),
        lambda y: y[:, :, :3].flatten(1).view(-1, 9)[:, :8].view(-1, 2, 4),
    ],
)
def test_what_does_more_than_move_rows_stays(between: Move) -> None:
    assert rewritten(merge_chains, Between(between), torch.randn(5, 3, 4))[1] == []


def test_what_others_read_stays() -> None:
    class Both(nn.Module):
        def __init__(self, moved: bool) -> None:
            super().__init__()
            self.moved = moved
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x)
            z = y.transpose(1, 2).transpose(1, 2).reshape(-1, 4)
            return (z if self.moved else y) + 1, self.b(z)

    for moved in (False, True):
        assert rewritten(merge_chains, Both(moved), torch.randn(5, 3, 4))[1] == []


def test_a_map_of_the_request_stays_at_one_row() -> None:
    class Tower(nn.Module):
        """user (N, 6) and item (N, 4)."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(8, 2)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            u = self.b(self.a(user).unsqueeze(1)).squeeze(1)
            answer: Tensor = self.head(torch.cat([u, item], 1))
            return answer

    rules = (split_linears, merge_chains, multiply_by_vector)
    graph, changes = rewritten_request(rules, Tower(), ["user"], torch.randn(9, 6), torch.randn(9, 4))
    assert "merge chains" in [change.rule for change in changes]
    rows = [node.meta["val"].shape[0] for node in graph.graph.nodes if node.target == LINEAR]
    # The user's maps are one, then the candidate's, whose bias it is.
    assert rows[:-1] == [1] * (len(rows) - 1) and not isinstance(rows[-1], int)
    assert len(rows) == 2
