"""Products with one vector, summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.declared import read_request
from fastrec.program import Program
from fastrec.request import ask
from fastrec.techniques import Fuse
from fastrec.techniques.fusion.dot_products import multiply_by_vector
from tests.checks import rolled_back

from .rewrites import count, rewritten

aten = torch.ops.aten
Score = Callable[[Tensor, Tensor], Tensor]


class Scored(nn.Module):
    """Two vectors, or sets of them, against each other."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.score(user, item)


class Fixed(nn.Module):
    """One vector, the model's own, for every row."""

    def __init__(self, score: Score, *shape: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(*shape))
        self.score = score

    def forward(self, item: Tensor) -> Tensor:
        return self.score(self.vector, item)


FORMS: dict[str, tuple[Score, tuple[int, ...]]] = {
    "sum": (lambda u, v: (u * v).sum(-1), (9, 6)),
    "turned round": (lambda u, v: (v * u).sum(1), (9, 6)),
    "kept": (lambda u, v: (u * v).sum(-1, keepdim=True), (9, 6)),
    "several": (lambda u, v: (u.unsqueeze(-2) * v).sum(-1), (9, 3, 6)),
    "column": (lambda u, v: torch.matmul(v, u.unsqueeze(-1)).squeeze(-1), (9, 3, 6)),
    "row by column": (lambda u, v: torch.matmul(u.unsqueeze(-2), v.unsqueeze(-1)).squeeze(-1), (9, 6)),
    "squashed": (lambda u, v: (u * v).sum(-1).sigmoid(), (9, 6)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_request_is_one_vector(form: str) -> None:
    score, shape = FORMS[form]
    torch.manual_seed(0)
    user, item = torch.randn(1, 6), torch.randn(*shape)
    program = Program.read(Scored(score), (user.repeat(9, 1), item))
    features = read_request(program.layout.features, ["user"])
    asked = ask(capture(replace(program, layout=replace(program.layout, features=features))))
    applied = Fuse(rules=("remove_no_ops", "compute_once", "multiply_by_vector")).apply(asked)
    assert any(change.rule == "multiply by vector" for change in applied.changes) and not rolled_back(applied)
    graph = applied.model
    assert isinstance(graph, fx.GraphModule)
    assert count(graph, aten.sum.dim_IntList, aten.mul.Tensor) == 0 and count(graph, aten.matmul.default) == 1
    for rows in (1, 2, 9):
        exact = score(user.double().expand(rows, -1), item[:rows].double())
        got = graph(user, item[:rows])[0]
        assert got.shape == exact.shape
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("score", "shape"),
    [
        (lambda w, x: (w * x).sum(-1), (6,)),
        (lambda w, x: (x * w).sum(-1, keepdim=True), (1, 6)),
        (lambda w, x: torch.matmul(x, w), (6, 1)),
        (lambda w, x: (x.unsqueeze(1) * w).sum(dim=2), (1, 1, 6)),
    ],
    ids=["sum", "kept", "column", "unsqueezed"],
)
def test_a_vector_of_the_model(score: Score, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    graph, changes = rewritten(multiply_by_vector, Fixed(score, *shape), torch.randn(9, 6))
    assert len(changes) == 1 and count(graph, aten.sum.dim_IntList, aten.mul.Tensor) == 0


class Read(nn.Module):
    """The products have another reader."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        product = self.vector * x
        return product.sum(-1), product


@pytest.mark.parametrize(
    "model",
    [
        Fixed(lambda w, x: (w * x).sum(0, keepdim=True).expand(len(x), -1, -1), 6),
        Fixed(lambda w, x: (w * x).sum((-1, -2)), 6),
        Fixed(lambda w, x: (w * x).sum(-1), 1),
        Fixed(lambda w, x: (w * x[..., :1]).sum(-1), 6),
        Fixed(lambda w, x: (w * x).sum(-1), 3, 6),
        Fixed(lambda w, x: (w * x.double()).sum(-1), 6),
        Fixed(lambda w, x: (w * x).sum(-1, dtype=torch.float64), 6),
        Read(),
    ],
    ids=[
        "over rows",
        "of all",
        "one number",
        "one column",
        "three vectors",
        "two types",
        "summed in another",
        "read",
    ],
)
def test_it_does_not_apply(model: nn.Module) -> None:
    _, changes = rewritten(multiply_by_vector, model, torch.randn(9, 3, 6))
    assert not changes


def test_not_where_each_row_has_its_vector() -> None:
    model = Scored(lambda u, v: (u * v).sum(-1) + torch.matmul(u.unsqueeze(1), v.unsqueeze(2)).flatten())
    _, changes = rewritten(multiply_by_vector, model, torch.randn(9, 6), torch.randn(9, 6))
    assert not changes
