"""What the candidates decide, what the request decides, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.capture import capture
from fastrec.declared import read_request
from fastrec.program import Program
from fastrec.request import ask
from fastrec.serving.sides import Sides, split_sides
from fastrec.techniques import Fuse, QuantizeTables

N = 7
Work = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Some work on the candidates (N, 3, 4), then a sum with the request's vector (N, 4)."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.batch_norm = nn.BatchNorm1d(3)
        self.conv = nn.Conv1d(3, 3, 3, padding=1)
        self.table = nn.Embedding(9, 4)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.work(self, item) * user.unsqueeze(1)).sum((1, 2)).tanh()


BY_ROW: dict[str, Work] = {
    "linear": lambda m, x: m.linear(x).relu(),
    "norms": lambda m, x: m.batch_norm(m.norm(x)),
    "convolution": lambda m, x: F.max_pool1d(m.conv(x), 3, 1, 1).exp(),
    "attention": lambda m, x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0],
    "softmax": lambda m, x: x.softmax(1) * x.cumsum(-1),
    "products": lambda m, x: x @ x.transpose(1, 2) @ x,
    "flat rows": lambda m, x: m.linear(x.reshape(-1, 4)).sigmoid().view(-1, 3, 4),
    "parts": lambda m, x: torch.cat([part * (k + 1) for k, part in enumerate(x.split([1, 3], -1))], -1).neg(),
    "lookup": lambda m, x: m.table(x.abs().clamp(max=8).long()[..., 0]).exp(),
    "padding": lambda m, x: (x + torch.zeros(len(x), 3, 4)).masked_fill(x > 0.5, -1.0).exp(),
    "best": lambda m, x: x.max(1, keepdim=True).values * x.mean(-1, keepdim=True) + x,
}
ACROSS: dict[str, Work] = {
    "mean of all": lambda m, x: (x - x.mean(0, keepdim=True)).exp(),
    "softmax over rows": lambda m, x: x.softmax(0).exp(),
    "running sum": lambda m, x: x.cumsum(0).exp(),
    "turned round": lambda m, x: x.flip(0).exp(),
    "places": lambda m, x: (x + torch.arange(len(x))[:, None, None]).exp(),
    "number of rows": lambda m, x: (x / x.shape[0]).exp(),
    "filled with the number": lambda m, x: (x + torch.full((len(x), 1, 1), float(len(x)))).exp(),
    "rows as columns": lambda m, x: x.reshape(3, -1, 4).transpose(0, 1).exp(),
    "two of each": lambda m, x: torch.cat([x, x + 1])[::2].exp(),
    "sorted": lambda m, x: x.sort(0).values.exp(),
    "all pairs": lambda m, x: torch.einsum("nij,mij->n", x, x)[:, None, None] + x,
    "picked by another": lambda m, x: x[x[:, 0, 0].argsort()].exp(),
    "unbatched attention": lambda m, x: F.scaled_dot_product_attention(*[x[:, 0]] * 3)[:, None] * x,
    "shifted": lambda m, x: F.pad(x, (0, 0, 0, 0, 1, -1)).exp(),
}


def split(work: Work, *, fuse: bool = False) -> tuple[Program, Sides]:
    torch.manual_seed(0)
    program = Program.read(Net(work).eval(), (torch.randn(1, 4).repeat(N, 1), torch.randn(N, 3, 4)))
    features = read_request(program.layout.features, ["user"])
    asked = ask(capture(replace(program, layout=replace(program.layout, features=features, rows=N))))
    return (asked.with_model(Fuse().apply(asked).model) if fuse else asked), split_sides(asked)


def run(sides: Sides, batch: Any, rows: Tensor) -> Tensor:
    """The answer for some rows, from what was computed for all."""
    with torch.no_grad():
        items = sides.items(*[batch[i] for i in sides.candidates])
        held = [tensor.movedim(axis, 0)[rows] for tensor, axis in zip(items, sides.axes, strict=True)]
        user = sides.user(*[batch[i] for i in sides.request])
        answer: Tensor = sides.score(*user, *held, *[batch[i][rows] for i in sides.raw])[0]
    return answer


def kept(sides: Sides) -> list[str]:
    """What is computed of the candidates: names of the operators whose results are kept."""
    return [str(node.target) for node in sides.items.graph.output_node().all_input_nodes]


ROWS = torch.tensor([5, 0, 5, 3])


@pytest.mark.parametrize("name", BY_ROW)
def test_work_by_row_is_the_candidates(name: str) -> None:
    asked, sides = split(BY_ROW[name])
    # No more is left than the product with the request's vector.
    assert len([node for node in sides.score.graph.nodes if node.op == "call_function"]) <= 7
    assert kept(sides) != ["tensors_1"] and not sides.raw
    want = asked.model(asked.batch[0], asked.batch[1][ROWS])[0]
    torch.testing.assert_close(run(sides, asked.batch, ROWS), want)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_rows_of_quantised_tables_are_the_candidates(bits: Any) -> None:
    asked, _ = split(BY_ROW["lookup"])
    asked = asked.with_model(QuantizeTables(bits, least_bytes=0).apply(asked).model)
    sides = split_sides(asked)
    assert kept(sides) == ["aten.exp.default"] and not sides.raw
    want = asked.model(asked.batch[0], asked.batch[1][ROWS])[0]
    torch.testing.assert_close(run(sides, asked.batch, ROWS), want)


@pytest.mark.parametrize("name", ACROSS)
def test_work_across_rows_is_left(name: str) -> None:
    asked, sides = split(ACROSS[name])
    some = (asked.batch[0], asked.batch[1][ROWS])
    want = asked.model(*some)[0]
    torch.testing.assert_close(run(sides, asked.batch, ROWS), want)


def test_a_request_with_a_bias_of_its_own() -> None:
    """The first layer of a tower over both: the candidates' part of the product is kept, the request's added."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(10, 8), nn.Linear(8, 1)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            score: Tensor = self.second(self.first(torch.cat([user, item], 1)).relu())
            return score

    torch.manual_seed(0)
    program = Program.read(Joined().eval(), (torch.randn(1, 4).repeat(N, 1), torch.randn(N, 6)))
    features = read_request(program.layout.features, ["user"])
    asked = ask(capture(replace(program, layout=replace(program.layout, features=features))))
    fast = asked.with_model(Fuse().apply(asked).model)
    sides = split_sides(fast)
    assert kept(sides) == ["aten.linear.default"]
    torch.testing.assert_close(
        run(sides, asked.batch, ROWS), asked.model(asked.batch[0], asked.batch[1][ROWS])[0]
    )


def test_a_spread_vector_is_kept_once() -> None:
    _, sides = split(lambda m, x: m.linear(x[:, :1]).exp().expand(-1, 3, -1))
    (node,) = sides.items.graph.output_node().all_input_nodes
    assert [n for n in node.meta["val"].shape if isinstance(n, int)] == [1, 4]


def test_all_work_may_be_left() -> None:
    asked, _ = split(BY_ROW["linear"])
    sides = split_sides(asked, whole=True)
    assert not [node for node in sides.items.graph.nodes if node.op == "call_function"]
    torch.testing.assert_close(
        run(sides, asked.batch, ROWS), asked.model(asked.batch[0], asked.batch[1][ROWS])[0]
    )


def test_columns_of_a_matrix_go_to_their_sides() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(5, 4) for _ in range(4)])

        def forward(self, x: Tensor) -> Tensor:
            a, b, c, d = (table(x[:, k]) for k, table in enumerate(self.tables))
            return (torch.tanh(a * c) * torch.sigmoid(b * d)).sum(-1)

    program = Program.read(Packed().eval(), torch.randint(5, (N, 4)))
    features = read_request(program.layout.features, {"x": [0, 2]})
    asked = ask(capture(replace(program, layout=replace(program.layout, features=features))))
    fast = asked.with_model(Fuse().apply(asked).model)
    sides = split_sides(fast)
    assert sides.candidates == sides.request == (0,) and not sides.raw
    matrix = asked.batch[0]
    own = matrix.clone()
    own[:, [0, 2]] = 0  # the candidates' side does not read the request's columns
    with torch.no_grad():
        items = [tensor.movedim(axis, 0) for tensor, axis in zip(sides.items(own), sides.axes, strict=True)]
        got = sides.score(*sides.user(matrix[:1]), *items)[0]
    torch.testing.assert_close(got, asked.model(matrix)[0])
