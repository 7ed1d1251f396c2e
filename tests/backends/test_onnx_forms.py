"""Forms that ONNX Runtime runs well: the same numbers, for any number of rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.backends.onnx_forms import for_onnx_runtime
from fastrec.graph import is_call

from .graphs import captured

aten = torch.ops.aten


class Forms(nn.Module):
    """x (N, 6): some of its columns, the last ones of a block, and products with a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor([4, 0, 0, 5]))
        self.register_buffer("vector", torch.randn(6))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        block = torch.stack([x, x + 1], 1)
        return (
            torch.index_select(x, 1, self.index),
            torch.index_select(block, -1, self.index),
            torch.index_select(block, 1, self.index[1:3]),
            torch.matmul(block, self.vector),
            torch.mv(x, self.vector),
            torch.matmul(x, torch.outer(self.vector, self.vector)),
        )


@pytest.fixture(scope="module")
def graph() -> fx.GraphModule:
    gm = captured(Forms(), (torch.randn(5, 6),)).model
    assert isinstance(gm, fx.GraphModule)
    return gm


def test_columns_are_gathered_as_rows_and_products_with_a_vector_are_sums(graph: fx.GraphModule) -> None:
    code = str(graph.graph)
    made = for_onnx_runtime(graph)
    assert str(graph.graph) == code
    axes = [node.args[1] for node in made.graph.nodes if is_call(node, aten.index_select.default)]
    assert axes == [0, 0, 1]
    assert not any(is_call(node, aten.mv.default) for node in made.graph.nodes)
    assert sum(is_call(node, aten.sum.dim_IntList) for node in made.graph.nodes) == 2
    assert sum(is_call(node, aten.matmul.default) for node in made.graph.nodes) == 1
    for rows in (0, 1, 2, 33):
        x = torch.randn(rows, 6)
        for got, right in zip(made(x), graph(x), strict=True):
            assert got.shape == right.shape
            torch.testing.assert_close(got, right)


def test_a_graph_of_none_of_them_is_given_back() -> None:
    gm = captured(nn.Linear(6, 2), (torch.randn(5, 6),)).model
    assert isinstance(gm, fx.GraphModule)
    assert for_onnx_runtime(gm) is gm
