"""Constant parts of the argument of a linear map: they go into its bias, however small they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrec.graph import operator_name, value
from fastrec.techniques.fusion.split_linears import split_linears

from .rewrites import graph_of, rewritten, rewritten_request


class Padded(nn.Module):
    """A fixed row of one or two numbers beside forty of the batch, and beside those of a request."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fixed = nn.Parameter(torch.randn(1, width))
        self.head = nn.Linear(80 + width, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([x, self.fixed.expand(len(x), -1), y], 1))
        return out


def test_a_constant_of_any_width_goes_into_the_bias() -> None:
    x, y = torch.randn(5, 40), torch.randn(5, 40)
    for width in (1, 2):
        graph, changes = rewritten(split_linears, Padded(width), x, y)
        assert [change.rule for change in changes] == ["split linears"]
        (made,) = (
            node
            for node in graph.graph.nodes
            if operator_name(node) == "linear" and value(node).shape[0] != 1
        )
        assert value(made.args[0]).shape[1] == 80


def test_a_small_part_of_the_request_stays_where_it_is() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(44, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            out: Tensor = self.head(torch.cat([x, y], 1))
            return out

    _, changes = rewritten_request([split_linears], Plain(), ["y"], torch.randn(5, 40), torch.randn(5, 4))
    assert not changes
    assert not split_linears(graph_of(Plain(), torch.randn(5, 40), torch.randn(5, 4)))


class Unit(nn.Module):
    """Some libraries lay the events of all rows end to end in front of the tower that weighs them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 1))

    def forward(self, item: Tensor, events: Tensor) -> Tensor:
        query = item.unsqueeze(1).expand(-1, events.shape[1], -1)
        joined = torch.cat([query, events, query - events, query * events], 2)
        weights = self.tower(joined.view(-1, 64)).view(-1, events.shape[1])
        return (events * weights.unsqueeze(2)).sum(1)


def test_rows_that_are_laid_end_to_end() -> None:
    items, history = torch.randn(5, 16), torch.randn(5, 30, 16)
    graph, changes = rewritten_request([split_linears], Unit(), ["events"], items, history)
    assert [change.rule for change in changes] == ["split linears"]
    # The product of both is what is left to be computed for each candidate and event.
    sizes = [
        tuple(value(node.args[0]).shape) for node in graph.graph.nodes if operator_name(node) == "linear"
    ]
    assert sum(len(size) == 3 and size[0] != 1 and size[1] == 30 and size[2] == 16 for size in sizes) == 1


def test_a_view_with_another_last_dimension_is_no_such() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(60, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.cat([x, x * x], 2).view(-1, 60))
            return out

    assert not split_linears(graph_of(Flat(), torch.randn(5, 10, 3)))
