"""Sums inside a row as products: the same sums, and nothing beside a row moves a bit of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.backends import OnnxRuntime
from fastrec.backends.row_sums import has_codes, sums_by_row
from fastrec.graph import operator_name
from fastrec.ops.linears import INT8_LINEAR

from .graphs import captured, graph_of

pytestmark = pytest.mark.usefixtures("one_thread")

TAKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "of the fields": lambda x: x.sum(1),
    "of the fields, kept": lambda x: x.sum(1, keepdim=True),
    "of the columns": lambda x: x.sum(-1),
    "of the columns, kept": lambda x: x.sum(2, keepdim=True),
    "of all": lambda x: x.sum((2, 1)),
    "mean of the fields": lambda x: x.mean(1),
    "mean of all": lambda x: x.mean((1, 2)),
    "length": lambda x: x.norm(dim=2),
    "of unit length": lambda x: nn.functional.normalize(x, dim=2),
    "of four dimensions": lambda x: x.unflatten(2, (3, 9)).sum(3),
}
LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "of the rows": lambda x: x.sum(0, keepdim=True) + x,
    "apart": lambda x: x.unflatten(2, (3, 9)).sum((1, 3)),
    "all, kept": lambda x: x.sum((1, 2), keepdim=True),
    "not the last two": lambda x: x.unflatten(2, (3, 9)).sum(1),
    "whole numbers": lambda x: x.long().sum(1),
    "of whole sixteens": lambda x: x[:, :16, :16].sum((1, 2)),
    "wider": lambda x: x.sum(1, dtype=torch.float64),
    "absolute": lambda x: x.norm(p=1, dim=2),
}
SUMS = {"sum", "mean", "linalg_vector_norm", "norm"}


class Of(nn.Module):
    """A sum, and a map in integers, for which such graphs promise that rows stay apart."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.what = what
        rng = torch.Generator().manual_seed(0)
        self.codes = nn.Buffer(torch.randint(-127, 128, (5, 27), dtype=torch.int8, generator=rng))
        self.scale = nn.Buffer(torch.full((5,), 0.01))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.what(x), INT8_LINEAR(x, self.codes, self.scale, 0.03, 120)


def draw(rows: int) -> Tensor:
    return torch.randn(rows, 17, 27, generator=torch.Generator().manual_seed(rows))


def names(gm: fx.GraphModule) -> set[str]:
    return {operator_name(node) for node in gm.graph.nodes}


@pytest.mark.parametrize("what", TAKEN.values(), ids=TAKEN)
def test_sums_are_products_and_the_same(what: Callable[[Tensor], Tensor]) -> None:
    gm = graph_of(captured(Of(what), (draw(5),)))
    code = gm.code
    made = sums_by_row(gm)
    assert names(gm) & SUMS and not names(made) & SUMS and gm.code == code
    for rows in (1, 5, 33):
        got, right = made(draw(rows))[0], what(draw(rows).double())
        assert got.shape == right.shape
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("what", LEFT.values(), ids=LEFT)
def test_other_sums_stay(what: Callable[[Tensor], Tensor]) -> None:
    gm = graph_of(captured(Of(what), (draw(5),)))
    assert names(sums_by_row(gm)) & SUMS == names(gm) & SUMS != set()


@pytest.mark.parametrize("what", TAKEN.values(), ids=TAKEN)
def test_no_bit_depends_on_the_rows_beside(what: Callable[[Tensor], Tensor]) -> None:
    session = OnnxRuntime().compile(captured(Of(what), (draw(5),)))
    x, rng = draw(200), torch.Generator().manual_seed(1)
    whole = session(x)
    for _ in range(5):
        order = torch.randperm(200, generator=rng)
        cuts = torch.randint(1, 200, (40,), generator=rng).unique().tolist()
        parts = [*order.tensor_split(cuts), *order[:20].split(1)]
        for part in parts:
            assert all(torch.equal(a, b[part]) for a, b in zip(session(x[part]), whole, strict=True))


def test_graphs_without_codes_are_told_apart() -> None:
    assert has_codes(graph_of(captured(Of(lambda x: x.sum(1)), (draw(5),))))
    assert not has_codes(graph_of(captured(nn.Linear(27, 2), (draw(5),))))
