"""The helpers that rules edit graphs with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.graph import (
    add_constant,
    constant,
    copy_graph,
    emit,
    evaluate,
    is_call,
    is_random,
    operator_name,
    sweep,
    value,
)
from fastrec.program import Program

aten = torch.ops.aten


def graph_of(model: nn.Module, *batch: Tensor) -> fx.GraphModule:
    graph = capture(Program.read(model.eval(), batch)).model
    assert isinstance(graph, fx.GraphModule)
    return graph


@pytest.fixture
def graph() -> fx.GraphModule:
    return graph_of(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.randn(4, 3))


def test_a_copy_shares_tensors_and_nothing_else(graph: fx.GraphModule) -> None:
    graph.meta["moved"] = {}
    copy = copy_graph(graph)
    assert {t.data_ptr() for t in copy.parameters()} == {t.data_ptr() for t in graph.parameters()}
    for node in copy.graph.nodes:
        node.meta.clear()
    copy.graph.erase_node(copy.graph.output_node())
    assert (
        "moved" in copy.meta
        and value(next(n for n in graph.graph.nodes if is_call(n, aten.relu.default))).ndim == 2
    )
    graph(torch.randn(1, 3))


def test_constants_and_calls_can_be_added(graph: fx.GraphModule) -> None:
    output = graph.graph.output_node()
    twice = add_constant(graph, "x.y z", torch.tensor(2.0))
    again = add_constant(graph, "x.y z", torch.tensor(3.0))
    assert twice.target != again.target
    (old,) = output.args[0]
    with graph.graph.inserting_before(output):
        made = emit(graph, aten.mul.Tensor, (old, twice))
    output.args = ((made,),)
    sweep(graph)
    assert [value(made).shape[1], operator_name(made)] == [2, "mul"]
    assert not hasattr(graph, str(again.target))
    x = torch.randn(5, 3)
    layer = graph.get_submodule("model.0")
    assert torch.allclose(graph(x)[0], torch.relu(x @ layer.weight.T + layer.bias) * 2)


def test_constant_of_anything_else_is_none(graph: fx.GraphModule) -> None:
    nodes = list(graph.graph.nodes)
    assert [constant(graph, node) is not None for node in nodes] == [node.op == "get_attr" for node in nodes]
    assert constant(graph, None) is None


@pytest.mark.parametrize(
    "layer", [nn.LSTM(4, 4, 2, bidirectional=True, dropout=0.5), nn.GRU(4, 4), nn.RNN(4, 4)]
)
def test_recurrent_layers_are_not_random_in_evaluation(layer: nn.Module) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x.transpose(0, 1))[0]
            return out[-1]

    assert not any(map(is_random, graph_of(Last(), torch.randn(5, 3, 4)).graph.nodes))


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("dims", [1, 2])
def test_a_convolution_that_pads_unevenly_leaves_the_number_of_rows_free(dims: int, kernel: int) -> None:
    layer = (nn.Conv1d, nn.Conv2d)[dims - 1](4, 6, kernel, padding="same")
    x = torch.randn(5, 4, *(9, 8)[:dims])
    graph = capture(Program.read(layer.eval(), (x,))).model
    assert isinstance(graph, fx.GraphModule)
    (node,) = [node for node in graph.graph.nodes if "conv" in node.name]
    found = evaluate(graph, node)
    assert tuple(found.shape[1:]) == layer(x).shape[1:] and isinstance(found.shape[0], torch.SymInt)
    (given,) = [node for node in graph.graph.nodes if node.op == "placeholder"]
    assert not given.meta["val"].shape[0].node.expr.is_number
