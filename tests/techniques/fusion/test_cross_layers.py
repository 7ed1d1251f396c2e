"""Cross networks over a request and a candidate, split through all their layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from fastrec.graph import is_call, value
from fastrec.techniques.fusion.cross_layers import split_cross_layers

from .rewrites import rewritten, rewritten_request


class Cross(nn.Module):
    """Cross layers over some columns of the request, in between and around those of the candidate."""

    def __init__(self, mine: int, theirs: int, outputs: int, layers: int, rank: int = 0) -> None:
        super().__init__()
        torch.manual_seed(mine * theirs + layers)
        self.cut, width = mine // 2, mine + theirs
        self.cross = nn.ModuleList(
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            if rank
            else nn.Linear(width, width)
            for _ in range(layers)
        )
        for weight in self.cross.parameters():
            nn.init.normal_(weight, std=0.2)
        self.deep, self.head = nn.Linear(width, 5), nn.Linear(width + 5, outputs)

    def join(self, mine: Tensor, theirs: Tensor) -> Tensor:
        return torch.cat([mine[:, : self.cut], theirs, mine[:, self.cut :]], 1)

    def layer(self, k: int, x0: Tensor, x: Tensor) -> Tensor:
        mapped = self.cross[k](x)
        return (x0 * mapped + x) if k % 2 else (x + mapped * x0)

    def forward(self, mine: Tensor, theirs: Tensor) -> Any:
        x = x0 = self.join(mine, theirs)
        for k in range(len(self.cross)):
            x = self.layer(k, x0, x)
        return self.read(x0, x)

    def read(self, x0: Tensor, x: Tensor) -> Any:
        return self.head(torch.cat([torch.relu(self.deep(x0)), x], 1))


class Two(Cross):
    """The last layer read by two heads and by a sum."""

    def read(self, x0: Tensor, x: Tensor) -> Any:
        return self.head(torch.cat([torch.relu(self.deep(x0)), x], 1)), torch.relu(x).sum(1)


class Tower(Cross):
    """The last layer as the argument of a tower."""

    def read(self, x0: Tensor, x: Tensor) -> Any:
        return torch.relu(self.head(torch.cat([x, torch.relu(self.deep(x0))], 1))).sum(1)


class Middle(Cross):
    """A layer before the last is read as well."""

    def forward(self, mine: Tensor, theirs: Tensor) -> Any:
        x0 = self.join(mine, theirs)
        first = self.layer(0, x0, x0)
        return self.read(x0, self.layer(1, x0, first)) + torch.relu(first).sum(1, keepdim=True)


class Gated(Cross):
    """An activation within each layer: the request's block is no longer affine in the candidate's."""

    def layer(self, k: int, x0: Tensor, x: Tensor) -> Tensor:
        return x0 * torch.tanh(self.cross[k](x)) + x


class Mixed(Cross):
    """Experts of low rank, an activation in the middle, a gate that depends on the layer before."""

    def layer(self, k: int, x0: Tensor, x: Tensor) -> Tensor:
        inner, outer = self.cross[k]
        return x0 * outer(torch.tanh(inner(x))) * torch.sigmoid(x.sum(1, keepdim=True)) + x


def batch(mine: int, theirs: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(mine)
    return torch.randn(40, mine, generator=rng), torch.randn(40, theirs, generator=rng)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([Cross, Two, Tower]),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([0, 3, 20]),
)
def test_answers_stay(
    kind: Callable[..., Cross], mine: int, theirs: int, outputs: int, layers: int, rank: int
) -> None:
    model = kind(mine, theirs, outputs, layers, rank)
    rewritten_request((split_cross_layers,), model, ["mine"], *batch(mine, theirs))


@pytest.mark.parametrize(
    ("kind", "outputs", "layers", "rank"),
    [
        (Cross, 1, 1, 0),
        (Cross, 1, 2, 0),
        (Cross, 1, 4, 0),
        (Cross, 9, 3, 0),
        (Cross, 1, 3, 20),
        (Two, 1, 3, 0),
        (Tower, 2, 3, 0),
    ],
)
def test_no_candidate_meets_a_whole_matrix(
    kind: Callable[..., Cross], outputs: int, layers: int, rank: int
) -> None:
    graph, changes = rewritten_request(
        (split_cross_layers,), kind(40, 2, outputs, layers, rank), ["mine"], *batch(40, 2)
    )
    assert [change.rule for change in changes] == ["split cross layers"]
    widest = 42 if kind is Two else 2 * (layers + 1)
    for node in graph.graph.nodes:
        if is_call(node, torch.ops.aten.linear.default) and isinstance(value(node).shape[0], torch.SymInt):
            x = node.args[0]
            # The deep layer and the head read x_0 and what was made whole.
            assert value(x).shape[1] <= widest or value(node).shape[1] in (5, outputs)


@pytest.mark.parametrize(
    ("model", "mine"),
    [
        (Gated(40, 2, 1, 3), 40),
        (Mixed(40, 2, 1, 3, 4), 40),
        (Middle(40, 2, 1, 2, 0), 0),
        (Cross(2, 40, 1, 3), 2),
    ],
    ids=["activation", "gated experts", "without a request", "a wide candidate"],
)
def test_does_not_apply(model: Cross, mine: int) -> None:
    if not mine:
        assert rewritten(split_cross_layers, model, *batch(40, 2))[1] == []
        return
    tensors = batch(mine, 42 - mine)
    assert rewritten_request((split_cross_layers,), model, ["mine"], *tensors)[1] == []


def test_up_to_a_layer_that_others_read() -> None:
    model = Middle(40, 2, 1, 2)
    rewritten_request((split_cross_layers,), model, ["mine"], *batch(40, 2))


def test_a_bias_added_apart() -> None:
    class Apart(Cross):
        def __init__(self) -> None:
            super().__init__(40, 2, 1, 2)
            self.cross = nn.ModuleList(nn.Linear(42, 42, bias=False) for _ in range(2))
            self.bias = nn.Parameter(torch.randn(2, 42))

        def layer(self, k: int, x0: Tensor, x: Tensor) -> Tensor:
            return x0 * (self.cross[k](x) + self.bias[k]) + x

    assert len(rewritten_request((split_cross_layers,), Apart(), ["mine"], *batch(40, 2))[1]) == 1
