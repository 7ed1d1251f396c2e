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
