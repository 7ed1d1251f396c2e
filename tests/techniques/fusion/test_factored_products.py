"""Sums of products of fields in pairs, in the forms people write them, request and candidates in any order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, fx, nn

from fastrec.graph import operator_name, value
from fastrec.techniques.fusion.factored_products import factor_products
from fastrec.techniques.fusion.split_sums import split_sums

from .rewrites import asked_graph, rewritten, rewritten_request

FIELDS = 6
PAIRS = list(combinations(range(FIELDS), 2))
ROW, COLUMN = torch.tensor(PAIRS).unbind(1)


class Pairs(nn.Module):
    """Fields of one table with offsets, and a form of their products."""

    def __init__(self, form: Callable[[Pairs, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.form = form
        self.table = nn.Embedding(10 * FIELDS, 8)
        self.offsets = 10 * torch.arange(FIELDS)
        self.matrix, self.weights = (
            nn.Parameter(torch.randn(FIELDS, FIELDS)),
            nn.Parameter(torch.randn(len(PAIRS))),
        )
        self.head, self.heads, self.beside = (
            nn.Linear(len(PAIRS), 1),
            nn.Linear(len(PAIRS), 2),
            nn.Linear(len(PAIRS) + 8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, self.table(x + self.offsets))


def loop(self: Pairs, v: Tensor) -> Tensor:
    total = torch.zeros_like(v[:, 0, 0])
    for i, j in PAIRS:
        total = total + (v[:, i] * v[:, j]).sum(1)
    return total


def weighted_loop(self: Pairs, v: Tensor) -> Tensor:
    return sum((v[:, i] * v[:, j]).sum(dim=-1, keepdim=True) * self.matrix[i, j] for i, j in PAIRS)


def differences(self: Pairs, v: Tensor) -> Tensor:
    total = (v[:, 0] * v[:, 1]).sum(1)
    for i, j in PAIRS[1:]:
        total = total - self.matrix[i, j] * (v[:, j] * v[:, i]).sum(1) / 2
    return total


def bi_interaction(v: Tensor) -> Tensor:
    return 0.5 * (v.sum(1) ** 2 - (v**2).sum(1))


FORMS: dict[str, Callable[[Pairs, Tensor], Tensor]] = {
    "loop": loop,
    "weighted_loop": weighted_loop,
    "differences": differences,
    "index_linear": lambda self, v: self.head((v[:, ROW] * v[:, COLUMN]).sum(2)),
    "two_outputs": lambda self, v: self.heads((v[:, ROW] * v[:, COLUMN]).sum(2)),
    "index_weights": lambda self, v: ((v[:, ROW] * v[:, COLUMN]).sum(-1) * self.weights).sum(1, keepdim=True),
    "index_vectors": lambda self, v: (v[:, ROW] * v[:, COLUMN] * self.weights[:, None]).sum((1, 2)),
    "matrix": lambda self, v: (torch.bmm(v, v.transpose(1, 2)) * self.matrix).sum((1, 2)),
    "triangle": lambda self, v: (v @ v.mT)[:, ROW, COLUMN].sum(-1),
    "einsum": lambda self, v: torch.einsum("nid,njd,ij->n", v, v, self.matrix),
    "einsum_pairs": lambda self, v: (torch.einsum("bfd,bgd->bfg", v, v) * self.matrix).sum((1, 2)),
    "weighted_fields": lambda self, v: (v * (self.matrix @ v)).sum((1, 2)),
    "stack": lambda self, v: torch.stack([v[:, i] * v[:, j] for i, j in PAIRS], 1).sum((1, 2)),
    "cat": lambda self, v: self.head(torch.cat([(v[:, i] * v[:, j]).sum(1, keepdim=True) for i, j in PAIRS], 1)),
    "beside": lambda self, v: self.beside(
        torch.cat([torch.relu(v[:, 2]), (v[:, ROW] * v[:, COLUMN]).sum(2)], 1)
    ),
}  # fmt: skip


def ids(rows: int = 40) -> Tensor:
    return torch.randint(10, (rows, FIELDS), generator=torch.Generator().manual_seed(0))


def products(graph: fx.GraphModule) -> int:
    """Elements of products of two tensors for each candidate, those of batched matrix products times their depth."""
    total = 0
    for node in graph.graph.nodes:
        name = operator_name(node)
        if name == "einsum":
            return FIELDS * FIELDS * 8  # of whichever order it takes, at least
        if name in ("mul", "bmm", "matmul") and not isinstance(value(node).shape[0], int):
            depth = 1 if name == "mul" else int(value(node.args[0]).shape[-1])  # type: ignore[arg-type]
            total += depth * int(torch.tensor([1, *map(int, value(node).shape[1:])]).prod())
        if name == "linear" and not isinstance(value(node).shape[0], int):
            total += int(value(node).shape[-1]) * int(value(node.args[0]).shape[-1])  # type: ignore[arg-type]
    return total


@pytest.mark.parametrize("name", FORMS)
def test_every_form(name: str) -> None:
    model = Pairs(FORMS[name])
    graph, changes = rewritten_request((factor_products,), model, {"x": [4, 0, 3, 5]}, ids())
    assert len(changes) == 1
    before, _ = asked_graph(model, {"x": [4, 0, 3, 5]}, ids())
    assert products(graph) < products(before)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.sets(st.integers(0, FIELDS - 1), min_size=1, max_size=FIELDS - 1))
def test_any_fields_of_the_request(name: str, columns: set[int]) -> None:
    rewritten_request((factor_products,), Pairs(FORMS[name]), {"x": sorted(columns)}, ids())


def test_one_candidate_field_is_a_product_with_the_sum_of_the_others() -> None:
    graph, changes = rewritten_request(
        (factor_products,), Pairs(weighted_loop), {"x": [0, 1, 2, 4, 5]}, ids()
    )
    assert len(changes) == 1 and products(graph) == 8


def test_separate_tables() -> None:
    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(10, 4) for _ in range(7))

        def forward(self, *ids: Tensor) -> Tensor:
            rows = [table(x) for table, x in zip(self.tables, ids, strict=True)]
            return sum((p * q).sum(1) for p, q in combinations(rows, 2)) + rows[0][:, 0]

    batch = [torch.randint(10, (40,)) for _ in range(7)]
    mine = [f"args[{k}]" for k in (0, 2, 3, 5, 6)]
    assert len(rewritten_request((factor_products,), Tables(), mine, *batch)[1]) == 1


@pytest.mark.parametrize("pooled", [True, False])
def test_sums_of_squares_are_split_instead(pooled: bool) -> None:
    model = Pairs(lambda _, v: bi_interaction(v).sum(1, keepdim=True) if pooled else bi_interaction(v))
    _, changes = rewritten_request((factor_products, split_sums), model, {"x": [1, 3, 4]}, ids())
    assert {change.rule for change in changes} == {"split sums"}


@pytest.mark.parametrize(
    "form",
    [
        lambda self, v: torch.relu((v[:, ROW] * v[:, COLUMN]).sum(2)).sum(1),
        lambda self, v: (v[:, ROW] * v[:, COLUMN]).cumsum(0).sum((1, 2)),
        lambda self, v: (v[:, ROW] * v[:, COLUMN] * torch.arange(8.0)).sum((1, 2)),
        lambda self, v: torch.cat([self.head(p := (v[:, ROW] * v[:, COLUMN]).sum(2)), p], 1),
        lambda self, v: (v[:, :, [0]] * v[:, :, [1]]).sum((1, 2)),
    ],
    ids=["not_linear", "along_the_rows", "weights_in_the_vectors", "others_read", "parts_of_vectors"],
)
def test_does_not_apply(form: Callable[[Pairs, Tensor], Tensor]) -> None:
    assert rewritten_request((factor_products,), Pairs(form), {"x": [0, 2, 3]}, ids())[1] == []


def test_without_a_request() -> None:
    assert rewritten(factor_products, Pairs(weighted_loop), ids())[1] == []


def test_long_loops() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 2)

        def forward(self, x: Tensor) -> Tensor:
            v = self.table(x)
            return sum((v[:, i] * v[:, j]).sum(1) for i, j in combinations(range(24), 2))

    batch = torch.randint(20, (20, 24))
    assert len(rewritten_request((factor_products,), Long(), {"x": range(20)}, batch)[1]) == 1
