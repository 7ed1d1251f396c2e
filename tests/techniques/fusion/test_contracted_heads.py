"""Heads contracted with the products of joins they read."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, fx, nn

from fastrec.graph import operator_name, value
from fastrec.techniques.fusion.contracted_heads import contract_heads
from fastrec.techniques.fusion.linears import merge_linears
from fastrec.techniques.fusion.split_linears import split_linears

from .rewrites import rewritten, rewritten_request


class Cross(nn.Module):
    """Cross layers over request and candidate, a deep part beside, a head over all of it."""

    def __init__(self, mine: int, theirs: int, outputs: int = 1, layers: int = 2, **style: bool) -> None:
        super().__init__()
        torch.manual_seed(mine + theirs)
        width = mine + theirs
        self.style = style
        self.cross = nn.ModuleList(
            nn.Linear(width, width, bias=not style.get("bare", False)) for _ in range(layers)
        )
        self.deep = nn.Linear(width, 5)
        self.head = nn.Linear(width + 5, outputs, bias=not style.get("bare", False))

    def forward(self, mine: Tensor, theirs: Tensor) -> Any:
        x0 = torch.cat([mine, theirs] if not self.style.get("turned") else [theirs, mine], 1)
        x = x0
        for layer in self.cross:
            x = layer(x) * x0 + x if self.style.get("swapped") else x + x0 * layer(x)
        answer = self.head(torch.cat([torch.relu(self.deep(x0)), x], 1))
        return (answer, x.sum(1)) if self.style.get("read") else answer


def multiply_adds(graph: fx.GraphModule, rows: int) -> int:
    """Those of linear maps, at this many rows."""
    total = 0
    for node in graph.graph.nodes:
        if operator_name(node) == "linear":
            many, width = value(node).shape
            total += (many if isinstance(many, int) else rows) * width * value(node.args[1]).shape[1]
    return total


@settings(max_examples=12, deadline=None)
@given(st.integers(6, 20), st.integers(1, 3), st.integers(2, 3), st.booleans(), st.booleans(), st.booleans())
def test_the_last_cross_layer(
    mine: int, theirs: int, layers: int, bare: bool, swapped: bool, turned: bool
) -> None:
    model = Cross(mine, theirs, 1, layers, bare=bare, swapped=swapped, turned=turned)
    rules = (contract_heads, merge_linears, split_linears)
    graph, changes = rewritten_request(rules, model, ["mine"], torch.randn(40, mine), torch.randn(40, theirs))
    plain, _ = rewritten_request(rules[1:], model, ["mine"], torch.randn(40, mine), torch.randn(40, theirs))
    assert changes[0].rule == "contract heads"
    width = mine + theirs
    saved = multiply_adds(plain, 64) - multiply_adds(graph, 64)
    # Of the last layer a product with the candidate's part is left, once with the request's, and one for its bias.
    assert saved == 64 * (width * width - theirs * width + (width - theirs * (not bare))) - mine * (
        width + (not bare)
    )


@pytest.mark.parametrize("outputs", [2, 4])
def test_several_outputs(outputs: int) -> None:
    batch = torch.randn(40, 40), torch.randn(40, 2)
    _, changes = rewritten_request((contract_heads,), Cross(40, 2, outputs), ["mine"], *batch)
    assert len(changes) == 1


def test_what_the_request_alone_scales() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(7, 6), nn.Linear(6, 2)

        def forward(self, gate: Tensor, x: Tensor) -> Tensor:
            return self.head(self.inner(x) * gate)

    batch = torch.randn(40, 6), torch.randn(40, 7)
    assert len(rewritten_request((contract_heads,), Gated(), ["gate"], *batch)[1]) == 1


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Cross(2, 12), "the candidate's part is too wide"),
        (Cross(12, 2, outputs=5), "too many outputs"),
        (Cross(12, 2, read=True), "another reads the last layer"),
        (Cross(12, 2, layers=1), "the layer's own argument is the join, and splits already"),
    ],
    ids=lambda x: x.replace(" ", "_") if isinstance(x, str) else "",
)
def test_does_not_apply(model: Cross, why: str) -> None:
    mine = 12 if model.cross[0].in_features == 14 and "wide" not in why else 2
    batch = torch.randn(40, mine), torch.randn(40, 14 - mine)
    assert rewritten_request((contract_heads,), model, ["mine"], *batch)[1] == []


def test_without_a_request() -> None:
    assert rewritten(contract_heads, Cross(12, 2), torch.randn(5, 12), torch.randn(5, 2))[1] == []
