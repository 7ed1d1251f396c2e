"""Pruned rows: which stay, what the others are read as, and which tables stay whole, with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec import compress
from fastrec.backends import Eager, OnnxRuntime
from fastrec.capture import capture
from fastrec.errors import InputError, TechniqueError
from fastrec.measure import tensor_bytes
from fastrec.program import Program
from fastrec.techniques import Applied, Fuse, PruneRows, QuantizeTables, ShareEmbeddings, Technique
from tests.techniques.rows import Rows

PRUNE = PruneRows(least_bytes=0)
V, WIDTH = 40, 8


def table(size: int = V, width: int = WIDTH, seed: int = 0) -> Tensor:
    """Random rows, the first of zeros."""
    rows = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
    rows[0] = 0
    return rows


def captured(model: nn.Module, batch: Tensor, *calibration: Tensor) -> Program:
    program = capture(Program.read(model.eval(), (batch,)))
    return replace(program, calibration=tuple((one,) for one in calibration))


def applied(program: Program, *techniques: Technique) -> tuple[fx.GraphModule, Applied]:
    made = Applied(program.model)
    for technique in techniques:
        made = technique.apply(program)
        program = program.with_model(made.model)
    assert isinstance(made.model, fx.GraphModule)
    return made.model, made


def test_rows_that_are_asked_for_stay_and_the_others_are_one_row() -> None:
    rows = table()
    model = Rows(rows)
    # Rows 3 and 5 twice and more, row 7 once.
    seen = torch.tensor([[3, 3, 7], [5, 5, 5]])
    program = captured(model, seen, seen)
    graph, made = applied(program, PRUNE)
    (change,) = made.changes
    weights = torch.ones(V, dtype=torch.float64)
    weights[7] = 2
    weights[[0, 3, 5]] = 0
    default = weights @ rows.double() / weights.sum()
    every = torch.arange(V)[:, None].repeat(1, 3)
    (found,) = graph(every)
    expected = default.float().expand(V, -1).clone()
    expected[[0, 3, 5]] = rows[[0, 3, 5]]
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-6, atol=1e-6)
    # Kept rows, and padding that calibration never saw, bit for bit.
    assert torch.equal(found[[0, 3, 5], 0], rows[[0, 3, 5]])
    assert tensor_bytes(graph) == 4 * V + 4 * WIDTH * 4 == change.added_bytes
    assert change.site == "model.table.weight"
    # 5 of 6 lookups are of rows 3 and 5; without itself only those of row 5 are still of one that is asked for twice.
    assert change.detail == (
        "3 of 40 rows are kept: 1280 -> 288 bytes, 83.33% of 6 lookups in calibration find their own row, "
        "50.00% where each is not counted itself"
    )
    assert PRUNE.apply(program.with_model(graph)).changes == ()
    assert [skip.reason for skip in PRUNE.apply(program.with_model(graph)).skipped] == [
        "its rows are looked up by a map already"
    ]


@pytest.mark.parametrize("shape", [(5,), (5, 1), (4, 3), (2, 3, 2), (0, 3)])
def test_ids_of_any_shape(shape: tuple[int, ...]) -> None:
    model = Rows(table())
    draw = torch.Generator().manual_seed(1)
    example = torch.randint(V, [2, *shape[1:]], generator=draw)
    seen = torch.randint(10, [60, *shape[1:]], generator=draw)
    graph, _ = applied(captured(model, example, seen), PRUNE)
    ids = torch.randint(10, shape, generator=draw)
    assert torch.equal(graph(ids)[0], model(ids))


class Bags(nn.Module):
    """Two fields and a bag of the first's table."""

    def __init__(self, one: Tensor, other: Tensor) -> None:
        super().__init__()
        self.one, self.other = nn.Embedding.from_pretrained(one), nn.Embedding.from_pretrained(other)
        self.bag = nn.EmbeddingBag.from_pretrained(one + 1, mode="mean")

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([self.one(ids[:, 0]), self.other(ids[:, 1]), self.bag(ids)], 1)


def test_bags_are_of_the_rows_that_are_left() -> None:
    model = Bags(table(), table(seed=1))
    seen = torch.randint(12, (400, 2), generator=torch.Generator().manual_seed(2))
    graph, made = applied(captured(model, seen[:3], seen), PRUNE)
    assert len(made.changes) == 3
    torch.testing.assert_close(graph(seen)[0], model(seen))
    # Row 13 and row 30 were never seen: the rows of all three tables are one default for both.
    unseen = graph(torch.tensor([[13, 30], [30, 13], [31, 17]]))[0]
    assert torch.equal(unseen[0], unseen[1]) and torch.equal(unseen[0], unseen[2])


class Columns(nn.Module):
    """One table for each column of ids, which fusion stacks."""

    def __init__(self, *tables: Tensor) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding.from_pretrained(one) for one in tables)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([one(ids[:, k]) for k, one in enumerate(self.tables)], 1)


def test_tables_that_were_stacked_keep_a_default_each() -> None:
    one, other = table(), table(seed=1) + 10
    seen = torch.randint(1, 12, (400, 2), generator=torch.Generator().manual_seed(3))
    seen = seen.repeat(1, 3)
    program = captured(Columns(one, other, *(table(seed=k) for k in range(2, 6))), seen[:3], seen)
    graph, made = applied(program, Fuse(), PRUNE)
    assert len(made.changes) == 1, "one stacked table"
    assert "71 of 240 rows are kept" in made.changes[0].detail
    (found,) = graph(torch.tensor([[13, 30], [3, 4]]).repeat(1, 3))
    torch.testing.assert_close(
        found[0, : 2 * WIDTH], torch.cat([one[12:].mean(0), other[[0, *range(12, V)]].mean(0)])
    )
    assert torch.equal(found[1, : 2 * WIDTH], torch.cat([one[3], other[4]]))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding.from_pretrained(table())
        self.odd = nn.Embedding.from_pretrained(table() / 0)
        self.short = nn.Embedding.from_pretrained(table().half())
        self.thin = nn.Embedding.from_pretrained(table(width=1))

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        x = self.items(ids[:, 0])
        return x @ self.items.weight.t(), self.odd(ids[:, 0]), self.short(ids[:, 0]), self.thin(ids[:, 0])


def test_what_stays_says_why() -> None:
    ids = torch.tensor([[3], [3]])
    program = captured(Tied(), ids, ids)
    made = PRUNE.apply(program)
    assert made.changes == () and made.model is program.model
    reasons = {skip.site.split(".")[1]: skip.reason for skip in made.skipped}
    assert reasons["items"].startswith("it is read otherwise as well")
    assert reasons["odd"] == "it holds NaN or infinities" and reasons["short"] == "it holds float16"
    assert reasons["thin"] == (
        "38 of its 40 rows are looked up fewer than 2 times: without them it takes 172 bytes by a map, as it is 160"
    )
    (small,) = PruneRows().apply(captured(Rows(table()), ids, ids)).skipped
    assert small.reason == "its 1280 bytes are less than 1048576"


def test_milder_settings_keep_more() -> None:
    model = Rows(table())
    seen = torch.arange(V).repeat_interleave(torch.arange(V) % 7)[:, None]
    program = captured(model, seen[:2], seen)
    strong = PruneRows(least=5, least_bytes=0)
    milder = strong.milder(program, ())
    assert [step.least for step in milder] == [2, 1] and PruneRows(least=1).milder(program, ()) == ()  # type: ignore[attr-defined]  # its own settings
    sizes = [tensor_bytes(applied(program, step)[0]) for step in (strong, *milder)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
    # With `least=1` every lookup of calibration is as it was.
    assert torch.equal(applied(program, milder[-1])[0](seen)[0], model(seen))


def test_it_goes_with_other_forms_of_tables() -> None:
    model = Rows(table())
    seen = torch.randint(10, (60, 1), generator=torch.Generator().manual_seed(1))
    program = captured(model, seen[:2], seen)
    graph, _ = applied(program, PRUNE, QuantizeTables(8, least_bytes=0))
    torch.testing.assert_close(graph(seen)[0], model(seen), rtol=0.02, atol=0.02)
    again = ShareEmbeddings(keep=0.5, least_bytes=0).apply(program.with_model(applied(program, PRUNE)[0]))
    assert again.changes == ()


def test_it_serves_through_compress() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Rows(table(400)), nn.Flatten(1), nn.Linear(2 * WIDTH, 1)).eval()
    seen = [torch.randint(50, (64, 2), generator=torch.Generator().manual_seed(k)) for k in range(4)]
    fast = compress(
        model,
        seen[0],
        recipe=[Fuse(fold_bytes=0), PRUNE],
        calibration=seen,
        backends=[Eager(), OnnxRuntime()],
        seconds=2,
        batch_sizes=(16,),
        progress=False,
    )
    step = fast.report.steps[-1]
    assert step.technique == "prune_rows" and len(step.changes) == 1
    torch.testing.assert_close(fast(seen[0][:16]), model(seen[0][:16]))


def test_wrong_settings_and_calibration_are_named() -> None:
    for least in (0, -1, 1.5, True, None):
        with pytest.raises(InputError, match=r"PruneRows\(least=...\) takes a whole number from 1"):
            PruneRows(least=least)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(InputError, match="no table of this model"):
        PruneRows(only=("users",)).apply(captured(Rows(table()), torch.tensor([[1]])))
    with pytest.raises(TechniqueError, match=r"row 40 of model\.table\.weight, which has 40"):
        PRUNE.apply(captured(Rows(table()), torch.tensor([[1]]), torch.tensor([[40]])))
    model = Rows(table())
    with pytest.raises(TechniqueError, match="capture the program first"):
        PRUNE.apply(Program.read(model, (torch.tensor([[1]]),)))
