"""Windows: a convolution is a linear map of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastrec.graph import constant
from fastrec.techniques.quantization.windows import CONVOLUTIONS, Geometry, geometry_of, windows
from tests.techniques.fusion.rewrites import graph_of

SETTINGS: list[dict[str, Any]] = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same"},
    {"padding": "same", "dilation": 3},
    {"padding": "valid", "groups": 2},
    {"stride": 3, "padding": 2, "dilation": 2, "groups": 4},
]


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_convolution_is_a_linear_map_of_windows(settings: dict[str, Any], dims: int, kernel: int) -> None:
    torch.manual_seed(0)
    layer = (nn.Conv1d, nn.Conv2d)[dims - 1](4, 8, kernel, **settings)
    x = torch.randn(3, 4, *(11, 9)[:dims])
    graph = graph_of(layer, x)
    (node,) = [node for node in graph.graph.nodes if node.target in CONVOLUTIONS]
    weight = constant(graph, node.args[1])
    assert weight is not None
    geometry = geometry_of(node, weight.shape[2:])
    found = windows(x, weight.shape[2:], geometry, 10**6)
    groups = settings.get("groups", 1)
    parts = found.reshape(len(found), groups, -1), weight.reshape(groups, 8 // groups, -1)
    y = torch.einsum("ngi,goi->ngo", *parts).flatten(1) + layer.bias
    right = layer(x).movedim(1, -1).reshape(-1, 8)
    torch.testing.assert_close(y, right)


def test_a_few_of_many_are_of_all_rows_and_places() -> None:
    rows, columns = 40, 16
    x = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, 1, 1, columns)
    found = windows(x, (1, 1), Geometry((1, 1), (0, 0, 0, 0), (1, 1), 1), 64).flatten().long()
    assert len(found.unique()) == 64
    # Each quarter of the rows, and each column, though 64 divides their number.
    assert torch.bincount(found // (columns * rows // 4)).min() >= 14
    assert len((found % columns).unique()) == columns
    assert torch.equal(
        found, windows(x, (1, 1), Geometry((1, 1), (0, 0, 0, 0), (1, 1), 1), 64).flatten().long()
    )


def test_no_rows_have_no_windows() -> None:
    geometry = Geometry((1,), (1, 1), (1,), 1)
    assert windows(torch.randn(0, 3, 5), (3,), geometry, 9).shape == (0, 9)
