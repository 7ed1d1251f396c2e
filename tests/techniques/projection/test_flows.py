"""A change of basis travels through data flow: at full width nothing but rounding changes, whatever the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.capture import capture
from fastrec.declared import read_program
from fastrec.graph import sweep
from fastrec.program import Program
from fastrec.request import ask
from fastrec.techniques import Fuse
from fastrec.techniques.projection.fit import fitted
from fastrec.techniques.projection.flows import Flows
from fastrec.techniques.projection.rewrite import project
from fastrec.techniques.quantization.layers import named
from fastrec.techniques.reads import find_tables

ROWS, DENSE, PAST = 12, 3, 4


@dataclass(frozen=True)
class Drawn:
    """What one model is like."""

    kind: str
    width: int
    laid: str
    pooled: str
    product: str


class Model(nn.Module):
    """ids (N, 2), past (N, 4) and dense (N, 3) -> scores (N,)."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.drawn, width = drawn, drawn.width
        self.tables = nn.ModuleList(nn.Embedding(ROWS, width) for _ in range(2))
        self.watched = nn.Embedding(ROWS, width)
        self.first = nn.Embedding(ROWS, 1)
        self.bottom = nn.Linear(DENSE, width)
        self.tower = nn.Sequential(nn.Linear(3 * width + DENSE, 7), nn.ReLU(), nn.Linear(7, 1))
        self.top = nn.Linear(16 + width, 1)
        self.mixed = nn.Parameter(torch.randn(3, 3))

    def pool(self, past: Tensor) -> Tensor:
        if self.drawn.pooled == "bag":
            return F.embedding_bag(past, self.watched.weight, mode="sum")
        rows = self.watched(past)
        if self.drawn.pooled == "mean":
            return rows.mean(1)
        if self.drawn.pooled == "masked":
            return rows.masked_fill((past == 0).unsqueeze(-1), 0.0).sum(1)
        weights = torch.softmax(past.to(rows.dtype), 1)
        return torch.bmm(weights.unsqueeze(1), rows).squeeze(1)

    def lay(self, rows: list[Tensor]) -> Tensor:
        if self.drawn.laid == "stack":
            return torch.stack(rows, 1)
        if self.drawn.laid == "view":
            return torch.cat(rows, -1).view(-1, len(rows), self.drawn.width)
        return torch.cat([row[:, None] for row in rows], 1)

    def forward(self, ids: Tensor, past: Tensor, dense: Tensor) -> Tensor:
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)] + [self.pool(past)]
        if self.drawn.kind == "mlp":
            return self.tower(torch.cat([*rows, dense], -1)).squeeze(-1)
        if self.drawn.kind == "fm":
            fields = self.lay(rows)
            pairs = (fields.sum(1).square() - (fields * fields).sum(1)).sum(1) / 2
            weighted = torch.matmul(self.mixed, fields)
            deep = self.tower(torch.cat([(fields - 2 * weighted).flatten(1), dense], 1))
            return pairs + self.first(ids[:, 0]).squeeze(-1) + deep.squeeze(1)
        if self.drawn.kind == "dlrm":
            low = torch.relu(self.bottom(dense))
            fields = self.lay([low, *rows])
            products = torch.bmm(fields, fields.transpose(1, 2)).flatten(1)
            return self.top(torch.cat([low, products], 1)).squeeze(1)
        left, right = rows[0] + rows[1], rows[2]
        if self.drawn.product == "cosine":
            left, right = F.normalize(left, dim=-1), F.normalize(right, dim=-1)
        if self.drawn.product == "foreign":
            right = torch.relu(self.bottom(dense))
        if self.drawn.product == "matmul":
            return torch.matmul(left.unsqueeze(1), right.unsqueeze(-1)).flatten()
        return (left * right).sum(-1)


DRAWN = st.builds(
    Drawn,
    kind=st.sampled_from(["mlp", "fm", "dlrm", "towers"]),
    width=st.sampled_from([2, 3, 6]),
    laid=st.sampled_from(["stack", "view", "cat"]),
    pooled=st.sampled_from(["mean", "masked", "weighted", "bag"]),
    product=st.sampled_from(["mul", "matmul", "cosine", "foreign"]),
)


def batch_of(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    ids, past = (torch.randint(ROWS, (rows, many), generator=rng) for many in (2, PAST))
    return ids, past, torch.randn(rows, DENSE, generator=rng)


def captured(model: nn.Module, make: Callable[[int, int], tuple[Tensor, ...]] = batch_of) -> Program:
    program = capture(Program.read(model, make(5, 1)))
    return replace(program, calibration=(make(200, 2),))


def turned(program: Program) -> tuple[fx.GraphModule, int]:
    """The graph with each group in a basis of its full width, and how many groups there were."""
    assert isinstance(program.model, fx.GraphModule)
    gm = named(program.model)
    flows = Flows(gm, [table for table in find_tables(gm) if table.tensor.shape[1] > 1])
    groups = {root: group for root, group in flows.groups().items() if not group.reasons}
    bases = {}
    for root, group in groups.items():
        bases |= fitted(gm, {root: group}, program.calibration, 1.0, group.width)
    project(gm, flows, groups, bases)
    sweep(gm)
    return gm, len(groups)


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(drawn=DRAWN, fused=st.booleans())
def test_a_basis_of_full_width_is_exact(drawn: Drawn, fused: bool) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Model(drawn).eval()
    program = captured(model)
    if fused:
        program = program.with_model(Fuse().apply(program).model)
    gm, groups = turned(program)
    # Fusion may have put tables side by side or into the next layer: then there is nothing left to turn.
    assert groups or fused
    for rows in (1, 9):
        ids, past, dense = batch_of(rows, 60 + rows)
        with torch.no_grad():
            right = copy.deepcopy(model).double()(ids, past, dense.double())
            got = gm(ids, past, dense)[0]
        assert got.shape == right.shape
        assert float((got - right).abs().max()) <= 2e-5 * max(1.0, float(right.abs().max())), drawn


@pytest.mark.parametrize(
    "drawn", [Drawn("mlp", 6, "cat", "bag", "mul"), Drawn("dlrm", 6, "cat", "mean", "mul")]
)
def test_what_one_request_shares_is_turned_once(drawn: Drawn) -> None:
    model = Model(drawn).eval()
    ids, past, dense = batch_of(5, 1)
    batch = (torch.cat([ids[:1, :1].expand(5, 1), ids[:, 1:]], 1), past[:1].expand(5, -1).contiguous(), dense)
    asked = ask(capture(read_program(model, batch, [], {"ids": (0,), "past": True})))
    for first in (asked.model, Fuse().apply(asked).model):
        assert isinstance(asked.batch, tuple)
        gm, _ = turned(replace(asked, model=first, calibration=(tuple(asked.batch),)))
        with torch.no_grad():
            assert torch.allclose(gm(*asked.batch)[0], model(*batch), atol=1e-5)


class Reads(nn.Module):
    """ids (N,) -> what `read` makes of their rows (N, 6)."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.read = nn.Embedding(ROWS, 6), read
        self.norm, self.map = nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(self.table(ids))


@pytest.mark.parametrize(
    ("read", "word"),
    [
        (torch.relu, "relu"),
        (lambda x: torch.softmax(x, -1), "softmax"),
        (lambda x: F.layer_norm(x, (6,)).sum(-1), "layer_norm"),
        (lambda x: x[:, :3].square().sum(-1), "slice"),
        (lambda x: x.sum(-1), "sum"),
        (lambda x: (x + 1).square().sum(-1), "add"),
        (lambda x: x * torch.arange(6.0), "mul"),
        (lambda x: x.view(-1, 2, 3).square().sum(-1), "view"),
        (lambda x: (x * x) @ torch.ones(6, 2), "matmul"),
        (lambda x: x * 2, "answers"),
    ],
)
def test_what_reads_columns_one_by_one_is_named(read: Callable[[Tensor], Tensor], word: str) -> None:
    program = capture(Program.read(Reads(read).eval(), torch.arange(5)))
    assert isinstance(program.model, fx.GraphModule)
    gm = named(program.model)
    (group,) = Flows(gm, find_tables(gm)).groups().values()
    assert group.reasons and word in group.reasons[0]
