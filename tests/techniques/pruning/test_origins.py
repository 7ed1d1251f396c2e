"""Where values come from: column by column through whatever keeps columns apart, from everything otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastrec.inputs import Feature
from fastrec.techniques.pruning.origins import Origins, words_of
from tests.techniques.fusion.rewrites import graph_of


class Steps(nn.Module):
    def __init__(self, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call(x, y)


ALL = {(0, 0), (0, 1), (0, 2), (0, 3)}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda x, y: x[:, 2] % 7, [{(0, 2)}]),
        (lambda x, y: x[:, 1:3] + torch.arange(2), [{(0, 1)}, {(0, 2)}]),
        (lambda x, y: x[:, [3, 0]] * 2, [{(0, 3)}, {(0, 0)}]),
        (lambda x, y: torch.stack([x[:, 1], y], 1), [{(0, 1)}, {(1, None)}]),
        (lambda x, y: torch.cat([y[:, None], x[:, -1:]], 1), [{(1, None)}, {(0, 3)}]),
        (lambda x, y: x[:, :2] + y[:, None], [{(0, 0), (1, None)}, {(0, 1), (1, None)}]),
        (lambda x, y: x.split([1, 3], 1)[1], [{(0, 1)}, {(0, 2)}, {(0, 3)}]),
        (lambda x, y: x.unbind(1)[3] * y, [{(0, 3), (1, None)}]),
        (lambda x, y: x.sum(1), [ALL]),
        (lambda x, y: (x @ torch.ones(4, 4, dtype=torch.int64))[:, :1], [ALL]),
        (lambda x, y: x.flip(1)[:, 0], [ALL]),
        (lambda x, y: y.new_zeros(x.shape[0], 2), [set(), set()]),
    ],
)
def test_columns_are_followed(call: Callable[[Tensor, Tensor], Tensor], expected: list[set[object]]) -> None:
    graph = graph_of(Steps(call), torch.randint(9, (5, 4)), torch.randint(9, (5,)))
    (out,) = graph.graph.output_node().args[0]  # type: ignore[misc,union-attr]  # an argument of a node is of any type
    assert [set(origin) for origin in Origins(graph).of(out)] == expected  # type: ignore[arg-type]  # a node


def test_words_are_the_callers() -> None:
    features = [
        Feature("user.id", torch.int64, (8,)),
        Feature("x", torch.int64, (8, 4)),
        Feature("y", torch.int64, (8, 1)),
    ]
    assert words_of(frozenset([(0, None), (1, 2)]), features) == "user.id and x[:, 2]"
    assert words_of(frozenset([(1, 0), (1, 1), (1, 2), (1, 3)]), features) == "x"
    assert words_of(frozenset([(2, 0)]), features) == "y"
