"""Lookups by codes in graphs: whatever reads a table, in every backend, in front of sessions, on the candidates' side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.backends import Backend, Eager, OnnxRuntime, OpenVino
from fastrec.backends.split import split_lookups, split_picks
from fastrec.capture import capture
from fastrec.cost import cost
from fastrec.declared import read_request
from fastrec.graph import constant
from fastrec.program import Program
from fastrec.request import ask
from fastrec.serving.sides import split_sides
from fastrec.techniques import ComposeTables, ProductQuantizeTables, Technique

from .coded import ROWS, Rows, captured, trained

# By parts of odd width, by learned sums with hot rows, and by quotients: one table each.
TECHNIQUES: tuple[Technique, ...] = (
    ProductQuantizeTables(4, codes=32, only=("model.items.weight",), least_bytes=0),
    ComposeTables(1 / 4, hot=0.1, only=("model.users.weight",), least_bytes=0),
    ComposeTables(1 / 2, learned=False, only=("model.kinds.weight",), least_bytes=0),
)
FORMS = (
    (ProductQuantizeTables(4, codes=32, least_bytes=0), 1 + 2),
    (ProductQuantizeTables(4, codes=32, hot=0.1, least_bytes=0), 1 + 2 + 2),
    (ComposeTables(1 / 4, least_bytes=0), 1 + 2),
    (ComposeTables(1 / 2, learned=False, least_bytes=0), 2),
)


class Reads(nn.Module):
    """Three tables, read by rows of one id and several, by `index_select`, added up and in bags."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding.from_pretrained(trained(10))
        self.users = nn.Embedding.from_pretrained(trained(16))
        steps = torch.arange(ROWS)
        self.kinds = nn.EmbeddingBag.from_pretrained(
            trained(8)[steps // 20] + trained(8, seed=1)[steps % 20], mode="mean"
        )
        self.head = nn.Linear(42, 3)

    def forward(self, item: Tensor, history: Tensor) -> Tensor:
        items = self.items(item) - self.items(history).sum(1)
        users = self.users.weight.index_select(0, item) * self.users(history).relu().sum(1)
        first = torch.cat([items, users], 1)
        rest = torch.cat([self.kinds(history), self.kinds(item.unsqueeze(1))], 1)
        out: Tensor = self.head(torch.cat([first, rest], 1))
        return out


def batch(rows: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    return torch.randint(ROWS, (rows,), generator=rng), torch.randint(ROWS, (rows, 5), generator=rng)


@pytest.fixture(scope="module")
def program() -> Program:
    """The model with its tables by codes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = captured(Reads(), [batch(6), batch(40)])
    for technique in TECHNIQUES:
        applied = technique.apply(made)
        assert len(applied.changes) == 1, applied.skipped
        made = made.with_model(applied.model)
    return made


def decoded(program: Program) -> nn.Module:
    """The model with the rows that lookups of one id alone give."""
    model = Reads()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Reads().eval()
    for technique in TECHNIQUES:
        name = technique.only[0].split(".")[1]  # type: ignore[attr-defined]
        table = getattr(model, name).weight
        settings = replace(technique, only=("model.table.weight",))  # type: ignore[call-arg]
        # As often as the model looks its rows up.
        (item, history), (more, others) = program.calibration
        flat = [item, more, history.flatten(), others.flatten()]
        alone = captured(Rows(table.detach().clone()), [(torch.cat(flat).view(-1, 1),)])
        graph = settings.apply(alone).model
        with torch.no_grad():
            table.copy_(graph(torch.arange(ROWS).view(-1, 1))[0][:, 0])
    return model


def test_whatever_reads_a_table_gets_the_rows_of_its_codes(program: Program) -> None:
    model = decoded(program).double()
    for rows in (1, 2, 33):
        found, right = program.model(*batch(rows))[0].double(), model(*batch(rows))
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    # No table of the old ones is left.
    assert not any(len(tensor) == ROWS and tensor.is_floating_point() for tensor in program.model.buffers())
    assert all(len(tensor) < ROWS for tensor in program.model.parameters())


@pytest.mark.parametrize(
    "backend",
    [Eager(), *(kind(lookups=where) for kind in (OnnxRuntime, OpenVino) for where in ("torch", "session"))],
    ids=lambda backend: backend.label,
)  # fmt: skip
def test_every_backend_serves_them(program: Program, backend: Backend) -> None:
    if backend.unavailable() is not None:
        pytest.skip(str(backend.unavailable()))
    session = backend.compile(program)
    for rows in (1, 2, 33, 1000):
        with torch.no_grad():
            right = program.model(*batch(rows))[0]
        torch.testing.assert_close(session(*batch(rows))[0], right, rtol=2e-5, atol=2e-5)


def test_lookups_run_in_front(program: Program) -> None:
    assert isinstance(program.model, fx.GraphModule)
    parts = split_lookups(program.model)
    held = [constant(parts.dense, node) for node in parts.dense.graph.nodes]
    assert max(len(tensor) for tensor in held if tensor is not None) < 5
    for some in (parts, split_picks(program.model)):
        found, right = some.dense(*some.lookups(*batch(7)))[0], program.model(*batch(7))[0]
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("technique", "lookups"), FORMS, ids=str)
def test_lookups_are_the_candidates_and_are_counted(technique: Technique, lookups: int) -> None:
    class Dots(Rows):
        def forward(self, ids: Tensor, user: Tensor) -> Tensor:  # type: ignore[override]
            return (self.table(ids).exp() * user.unsqueeze(1)).sum((1, 2))

    steps = torch.arange(ROWS)
    table = trained(8)[steps // 20] + trained(8, seed=1)[steps % 20]
    plain = Program.read(Dots(table).eval(), (torch.arange(21).view(7, 3), torch.randn(1, 8).repeat(7, 1)))
    features = read_request(plain.layout.features, ["user"])
    plain = replace(plain, layout=replace(plain.layout, features=features, rows=7))
    asked = ask(capture(plain))
    before = cost(asked, 10)
    asked = asked.with_model(technique.apply(asked).model)
    sides = split_sides(asked)
    kept = [str(node.target) for node in sides.items.graph.output_node().all_input_nodes]
    assert kept == ["aten.exp.default"] and not sides.raw
    rows, ids = torch.tensor([5, 0, 5, 3]), asked.batch[0]
    (items,) = sides.items(ids)
    items = items.movedim(sides.axes[0], 0)[rows]
    found = sides.score(*sides.user(*[asked.batch[i] for i in sides.request]), items)[0]
    torch.testing.assert_close(found, asked.model(ids[rows], *asked.batch[1:])[0])
    # Some rows of a codebook for each id, of codes the row itself, of hot ones two more.
    assert before.lookups == 30 and cost(asked, 10).lookups == 30 * lookups
