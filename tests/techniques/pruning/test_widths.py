"""Which units a graph has, which of them may go, and why the others stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.techniques.pruning.graph_units import GraphUnits

from .masks import captured, graph_units, reasons_of, units_of
from .models import numbers


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("mlp", [16, 12]),
        ("gated", [12, 8]),
        ("residual", [12, 16, 16, 16]),
        ("siamese", [12, 10]),
        ("interest", [10, 6, 12]),
        ("tasks", [12, 8, 12, 12, 6, 6]),
        ("encoder", [20]),
        ("post_norm", [20]),
        ("beside", [9, 7, 10]),
        ("flattened", [8, 10]),
        ("crossed", [10, 4]),
        ("filtered", [12, 8]),
        ("computed", [12]),
        ("chosen", [12, 8]),
    ],
)
def test_which_units_may_go(name: str, free: list[int]) -> None:
    assert list(units_of(graph_units(name)).values()) == free


@pytest.mark.parametrize(
    ("name", "writers"), [("residual", 4), ("siamese", 2), ("gated", 2), ("crossed", 4), ("chosen", 2)]
)
def test_units_that_are_added_multiplied_or_of_one_weight_go_together(name: str, writers: int) -> None:
    assert len(graph_units(name).groups[0].writers) == writers


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gated", "glu reads them otherwise"),
        ("siamese", "sum reads them otherwise"),
        ("tasks", "softmax reads them otherwise"),
        ("encoder", "which is no unit"),
        ("computed", "their bias is no constant"),
        ("chosen", "topk reads them otherwise"),
    ],
)
def test_what_stays_says_why(name: str, reason: str) -> None:
    assert any(reason in said for said in reasons_of(graph_units(name)).values())


def test_columns_of_a_join_are_counted_from_its_start() -> None:
    found = graph_units("beside")
    left, right = list(units_of(found))[:2]
    (reader,) = found.readers(found.groups[0])
    assert reader.places[left].flatten().tolist() == list(range(9))
    assert reader.places[right].flatten().tolist() == list(range(13, 20))
    kept = {left: torch.tensor([1]), right: torch.tensor([0, 6])}
    assert reader.left(kept).tolist() == [1, 9, 10, 11, 12, 13, 19]


def test_a_unit_may_be_read_by_several_columns() -> None:
    found = graph_units("flattened")
    (reader,) = found.readers(found.groups[0])
    assert reader.places[found.groups[0].site].tolist() == [[j, 8 + j, 16 + j] for j in range(8)]


class Around(nn.Module):
    """Units of one map, and whatever is done with them."""

    def __init__(self, use: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.other = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(6, 8)
        self.same, self.table, self.scale = nn.Linear(8, 8), nn.Embedding(9, 8), nn.Parameter(torch.ones(8))
        self._use = use

    def forward(self, x: Tensor) -> Any:
        return self._use(self, x, torch.relu(self.up(x)))


def _rows(m: Any, x: Tensor) -> Tensor:
    found: Tensor = m.table((x[:, 0].abs() * 3).long().clamp(max=8))
    return found


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda m, x, h: (m.down(h), h), "among the model's answers"),
        (lambda m, x, h: m.down(F.layer_norm(h, (8,))), "layer_norm reads them otherwise"),
        (lambda m, x, h: m.down(h.softmax(1)), "softmax reads them otherwise"),
        (lambda m, x, h: m.down(h + _rows(m, x)), "which is no unit"),
        (lambda m, x, h: m.down(torch.stack([h, _rows(m, x)], 1)).sum(1), "values that are no units"),
        (lambda m, x, h: m.down(h) + m.down(_rows(m, x)), "reads the weight that maps them as well"),
        (lambda m, x, h: F.linear(m.same(h), m.table.weight) + _rows(m, x).sum(), "reads the weight that maps them"),
        (lambda m, x, h: m.down(h[:, 4:].repeat(1, 2)), "slice reads them otherwise"),
        (lambda m, x, h: m.down(h.cumsum(1)), "cumsum reads them otherwise"),
        (lambda m, x, h: torch.einsum("ni,ni->n", h, m.other(x)) + m.down(h).sum(1), "einsum adds up products"),
        (lambda m, x, h: h @ h.t() + m.down(h).sum(), "adds up products of them"),
        (lambda m, x, h: m.down(F.batch_norm(h.view(-1, 2, 4), m.scale[:2], m.scale[:2] + 1).flatten(1)), "otherwise than one by one"),
    ],
)  # fmt: skip
def test_what_reads_units_otherwise_blocks_them(use: Callable[..., Any], reason: str) -> None:
    found = GraphUnits(captured(Around(use), numbers(5)))
    assert any(reason in said for said in reasons_of(found).values())


@pytest.mark.parametrize(
    ("use", "maps"),
    [
        (lambda m, x, h: m.down(h * (x[:, :1] > 0)), 1),
        (lambda m, x, h: m.down(h * m.scale + F.mish(m.other(x))), 2),
        (lambda m, x, h: m.down(torch.stack([h, m.other(x)], 1)).sum(1), 2),
        (lambda m, x, h: m.down(h) + m.down(m.other(x)), 2),
        (lambda m, x, h: m.down(torch.einsum("ni,nk->nki", h, x)).sum(1), 1),
        (lambda m, x, h: m.down(x.t() @ h), 1),
        (lambda m, x, h: m.down(h) / h.shape[0], 1),
    ],
)
def test_what_keeps_units_apart_does_not(use: Callable[..., Any], maps: int) -> None:
    found = GraphUnits(captured(Around(use), numbers(5)))
    assert len(found.groups[0].writers) == maps and not found.groups[0].reason


def test_a_map_of_one_unit_is_no_group() -> None:
    found = graph_units("beside")
    assert all(group.width > 1 for group in found.groups)
    # The gate, which all units of a row are multiplied with, blocks none of them.
    assert not found.groups[0].reason
