"""Parts of a graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.subgraphs import past, subgraph


class Two(nn.Module):
    """x, y -> a weighted x, a moved y, and both together; y is written to on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weighted = (x + 1) * self.weight
        moved = y.neg()
        moved.add_(5)
        return weighted, moved, weighted + moved


@pytest.fixture
def gm() -> fx.GraphModule:
    return fx.symbolic_trace(Two())


def outputs_of(gm: fx.GraphModule) -> list[fx.Node]:
    return list(gm.graph.output_node().args[0])  # type: ignore[arg-type]


def test_the_past_of_nodes_is_in_the_order_of_the_graph_and_ends_where_it_is_given(
    gm: fx.GraphModule,
) -> None:
    weighted, moved, both = outputs_of(gm)
    assert [node.name for node in past([weighted])] == ["x", "add", "weight", "mul"]
    assert [node.name for node in past([both, weighted], [weighted])] == ["y", "neg", "add_1"]
    assert past([moved], [moved]) == []


def test_a_part_takes_all_inputs_and_what_is_given_behind_them(gm: fx.GraphModule) -> None:
    weighted, moved, both = outputs_of(gm)
    x, y = torch.ones(4, 2), torch.ones(2)
    first = subgraph(gm, [weighted])
    assert first.weight is gm.weight
    torch.testing.assert_close(first(x, y), (torch.tensor([4.0, 6.0]).expand(4, 2),))
    assert "neg" not in [node.name for node in first.graph.nodes]
    rest = subgraph(gm, [both, moved], [weighted])
    assert "weight" not in [node.name for node in rest.graph.nodes]
    torch.testing.assert_close(rest(x, y, x * 10), (x * 10 - 1, torch.full((2,), -1.0)))


def test_what_writes_is_kept_where_it_is_asked_for(gm: fx.GraphModule) -> None:
    _, moved, _ = outputs_of(gm)
    writes = [node for node in gm.graph.nodes if node.target == "add_"]
    assert [len(subgraph(gm, [moved], (), some).graph.nodes) for some in ([], writes)] == [4, 5]
