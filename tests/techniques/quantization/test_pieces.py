"""Products of codes that are only split again: one for each piece, with the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.graph import copy_graph, sweep
from fastrec.ops.linears import INT8_LINEAR
from fastrec.techniques.quantization.pieces import take_apart
from tests.techniques.fusion.rewrites import count, graph_of

aten = torch.ops.aten


class Joint(nn.Module):
    """x (N, 12) -> a product (N, 10) and what is made of it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.codes = nn.Buffer(torch.randint(-127, 128, (10, 12)).to(torch.int8))
        self.scale, self.bias = nn.Buffer(torch.rand(10) / 100), nn.Buffer(torch.randn(10))
        self.form = form

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        bias = {"none": None, "computed": self.bias.sin()}.get(self.form, self.bias)
        y = INT8_LINEAR(x, self.codes, self.scale, 0.02, 120, bias)
        if self.form == "read twice":
            return (*y.split([4, 6], 1), y)
        if self.form == "by rows":
            return y.split([3, 2], 0)
        if self.form == "not split":
            return (y.relu(),)
        first, second, _ = y.split([3, 6, 1], -1)
        return first, second * 2


@pytest.mark.parametrize("form", ["constant", "none", "computed"])
def test_each_piece_has_a_product_of_its_own(form: str) -> None:
    x = torch.randn(5, 12)
    before = graph_of(Joint(form), x)
    after = copy_graph(before)
    take_apart(after)
    sweep(after)
    assert count(after, INT8_LINEAR) == 2 and count(after, aten.split_with_sizes.default) == 0
    for rows in (1, 5):
        for got, right in zip(after(x[:rows]), before(x[:rows]), strict=True):
            assert torch.equal(got, right)


def test_their_constants_are_views() -> None:
    graph = graph_of(Joint("constant"), torch.randn(5, 12))
    held = graph.get_buffer("model.codes").untyped_storage().data_ptr()
    take_apart(graph)
    sweep(graph)
    codes = [tensor for tensor in graph.buffers() if tensor.dtype is torch.int8]
    assert len(codes) == 2 and all(tensor.untyped_storage().data_ptr() == held for tensor in codes)


@pytest.mark.parametrize("form", ["read twice", "by rows", "not split"])
def test_others_stay(form: str) -> None:
    graph = graph_of(Joint(form), torch.randn(5, 12))
    assert isinstance(graph, fx.GraphModule)
    code = str(graph.graph)
    take_apart(graph)
    assert str(graph.graph) == code
