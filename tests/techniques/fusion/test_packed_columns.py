"""Fields joined again are a piece of the gather they were cut from."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from fastrec.techniques.fusion.packed_columns import pack_columns
from fastrec.techniques.fusion.pair_selection import select_pairs

from .rewrites import count, rewritten

aten = torch.ops.aten


class Join(nn.Module):
    """Joins fields of one block (N, 6, 5) in some way."""

    def __init__(self, join: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.join(x.sigmoid()))


@pytest.mark.parametrize(
    ("join", "selects"),
    [
        (lambda x: torch.stack([x[:, i] for i in range(6)], 1), 0),
        (lambda x: torch.cat([x[:, i] for i in range(1, 5)], 1), 0),
        (lambda x: torch.cat([x[:, i, :2] for i in (5, 3, 0, 1)], 1), 0),
        (lambda x: torch.cat([x[:, 0].sum(1, keepdim=True), *[x[:, i] for i in range(6)]], 1), 1),
        (lambda x: torch.stack([x.sum(1), *[x[:, i] for i in range(6)]], 1), 0),
        (lambda x: torch.cat([torch.cat([x[:, 0], x[:, 1]], 1), torch.cat([x[:, 2], x[:, 3]], 1)], 1), 0),
        (lambda x: torch.cat([x[:, i].unsqueeze(1) for i in range(6)], 1), 0),
        (lambda x: x[:, 0] + x[:, 1] + x[:, 2] + x[:, 4] + x.sum(1), 0),
    ],
)
def test_joined(join: Callable[[Tensor], Tensor], selects: int) -> None:
    graph, changes = rewritten(pack_columns, Join(join), torch.randn(5, 6, 5))
    assert changes and count(graph, aten.select.int) == selects


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=9), st.booleans())
def test_any_order_with_others_between(order: list[int], stacked: bool) -> None:
    def join(x: Tensor) -> Tensor:
        parts = [x[:, i] if i < 6 else x.sum(1) for i in order]
        return torch.stack(parts, 1) if stacked else torch.cat(parts, 1)

    rewritten(pack_columns, Join(join), torch.randn(5, 6, 5))


def test_pairs() -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows, columns = torch.tril_indices(6, 5, -1)
            return x[:, rows, columns] + x[:, rows, -1 - columns]

    def rule(graph: torch.fx.GraphModule) -> list[object]:
        from fastrec.techniques.fusion.constants import fold_constants

        fold_constants(graph)
        return select_pairs(graph)  # type: ignore[return-value]

    graph, changes = rewritten(rule, Pairs(), torch.randn(5, 6, 5))  # type: ignore[arg-type]
    assert len(changes) == 2 and count(graph, aten.index.Tensor) == 0
