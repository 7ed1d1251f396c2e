"""Squared lengths of looked-up rows are looked up, whatever way the sum of squares was written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.techniques.fusion.split_sums import split_sums
from fastrec.techniques.fusion.squared_lookups import look_up_norms

from .rewrites import count, rewritten, rewritten_request

aten = torch.ops.aten
ROWS = (7, 30, 5)


class Fields(nn.Module):
    """Fields of ids (N, 3) and a vector x (N, 8), their interaction by `score`."""

    def __init__(self, score: Callable[[Tensor], Tensor], *, width: int = 8, form: str = "stack") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for rows in ROWS)
        self.joint = nn.Embedding(min(ROWS), width)
        self.score, self.form = score, form

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        found = [table(ids[:, k]) for k, table in enumerate(self.tables)]
        if self.form == "joint":
            return self.score(self.joint(ids))
        if self.form == "with x":
            return self.score(torch.stack([*found, x], 1))
        if self.form == "mostly x":
            return self.score(torch.stack([found[0], x, x + 1], 1))
        if self.form == "cat":
            return self.score(torch.cat([row.unsqueeze(1) for row in found], 1))
        return self.score(torch.stack(found, 1))


def batch(width: int = 8) -> tuple[Tensor, Tensor]:
    return torch.stack([torch.randint(min(ROWS), (9,)) for _ in ROWS], 1), torch.randn(9, width)


def machine(v: Tensor) -> Tensor:
    return 0.5 * (v.sum(1).pow(2) - v.pow(2).sum(1)).sum(1, keepdim=True)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "factorisation machine": machine,
    "squares as products": lambda v: 0.5 * (v.sum(1) * v.sum(1) - (v * v).sum(1)).sum(-1),
    "halved inside": lambda v: ((v.sum(1).square() - v.square().sum(1)) * 0.5).sum(1),
    "the lengths alone": lambda v: v.square().sum((1, 2)).sqrt(),
    "turned round": lambda v: (v.square().sum(1, keepdim=True).div(2) - v.sum(1, keepdim=True)).sum((1, 2)),
}


@pytest.mark.parametrize("form", ["stack", "cat", "joint", "with x"])
@pytest.mark.parametrize("score", SCORES)
def test_the_squares_are_gone(score: str, form: str) -> None:
    graph, (change,) = rewritten(look_up_norms, Fields(SCORES[score], form=form), *batch())
    tables = 1 if form == "joint" else len(ROWS)
    assert change.rule == "look up norms" and f"{tables} tables" in change.detail
    assert change.added_bytes == 4 * (min(ROWS) if form == "joint" else sum(ROWS))
    assert not any(_squares_rows(node) for node in graph.graph.nodes)


def _squares_rows(node: fx.Node) -> bool:
    """Whether vectors of all fields are squared."""
    value = node.meta.get("val")
    squares = "pow" in str(node.target) or "square" in str(node.target) or "mul" in str(node.target)
    return isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] > 1 and squares


def test_of_a_request_they_are_looked_up_once() -> None:
    model = Fields(machine)
    graph, changes = rewritten_request(
        [look_up_norms, split_sums], model, {"ids": [0, 1]}, *batch(), rows=(1, 2, 9)
    )
    assert [change.rule for change in changes].count("look up norms") == 1
    assert count(graph, aten.embedding.default) == 2 * len(ROWS)


@pytest.mark.parametrize(
    "model",
    [
        Fields(lambda v: v.square().sum(1)),
        Fields(lambda v: (v.square().sum(1) * v.sum(1)).sum(1)),
        Fields(lambda v: v.pow(3).sum((1, 2))),
        Fields(lambda v: (v.square() + v.square().mean()).sum((1, 2))),
        Fields(machine, form="mostly x"),
    ],
    ids=["apart", "weighed", "cubes", "two readers", "hardly looked up"],
)
def test_other_squares_stay(model: nn.Module) -> None:
    _, changes = rewritten(look_up_norms, model, *batch())
    assert not changes


def test_narrow_rows_stay() -> None:
    _, changes = rewritten(look_up_norms, Fields(machine, width=3), *batch(3))
    assert not changes


class Twice(nn.Module):
    """One table read by two fields."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return machine(torch.stack([self.table(a), self.table(b)], 1))


def test_a_shared_table_has_one_column_of_lengths() -> None:
    _, (change,) = rewritten(look_up_norms, Twice(), torch.randint(20, (9,)), torch.randint(20, (9,)))
    assert change.added_bytes == 20 * 4 and "1 tables" in change.detail
