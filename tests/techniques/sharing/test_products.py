"""Tables by product quantization: what their rows are, who shares a codebook, and which stay, with the reason."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from fastrec.errors import InputError
from fastrec.measure import tensor_bytes
from fastrec.techniques import ProductQuantizeTables, QuantizeTables
from fastrec.techniques.sharing.codebooks import centres, nearest, sample, weights_of

from .coded import ROWS, Rows, captured, graph_of, held, traffic, trained

NAME = "model.table.weight"


@pytest.mark.parametrize(("width", "columns"), [(16, 2), (17, 4), (6, 1)])
@pytest.mark.parametrize("hot", [0.0, 0.1])
def test_a_row_is_its_parts_side_by_side(width: int, columns: int, hot: float) -> None:
    table, seen = trained(width), traffic(3)
    program = captured(Rows(table), seen)
    graph, made = graph_of(program, ProductQuantizeTables(columns, codes=32, hot=hot, least_bytes=0))
    (change,) = made.changes
    whole = held(graph, NAME, sums=False)[:, :width]
    counts = torch.bincount(torch.cat([ids.flatten() for (ids,) in seen]), minlength=ROWS).double()
    exact = torch.zeros(ROWS, dtype=torch.bool)
    if hot:
        exact[counts.argsort(descending=True, stable=True)[: int(hot * ROWS)]] = True
        assert not whole[exact].any()
    right = torch.where(exact[:, None], table, whole)
    ids = torch.arange(ROWS).view(-1, 3)
    found = graph(ids)[0]
    assert torch.equal(found, right[ids]) and torch.equal(found[0, 0], torch.zeros(width))
    # A row alone is the row beside any other.
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1)).view(-1, 3)
    assert torch.equal(graph(order)[0], right[order]) and torch.equal(graph(ids[7:8])[0], right[ids[7:8]])
    assert graph(ids[:0])[0].shape == (0, 3, width)
    # What the report says is so.
    weights = (counts + counts.mean())[:, None]
    off = ((right - table).square() * weights).sum() / (table.square() * weights).sum()
    assert f"rows {float(off.sqrt()):.1%} off" in change.detail and 0 < off < 0.5**2
    parts = -(-width // columns)
    coarse = ROWS * parts + 4 * 32 * parts * columns
    assert change.added_bytes == coarse + (4 * ROWS + 4 * width * (1 + int(exact.sum()))) * (hot > 0)
    assert change.added_bytes <= tensor_bytes(graph) <= change.added_bytes + 200
    assert f"{table.nbytes:,} to {change.added_bytes:,} bytes" in change.detail


def test_few_rows_of_their_own_are_exact() -> None:
    some = trained(8, rows=15)
    table = some[torch.randint(15, (ROWS,), generator=torch.Generator().manual_seed(2))]
    graph, made = graph_of(
        captured(Rows(table), traffic(1)), ProductQuantizeTables(4, codes=16, least_bytes=0)
    )
    assert "rows 0.0% off" in made.changes[0].detail
    ids = torch.arange(ROWS).view(-1, 1)
    torch.testing.assert_close(graph(ids)[0], table[ids])


def test_centres_are_as_good_as_those_of_another_k_means() -> None:
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    found = centres(x, torch.ones(2000), 32, 0)
    assert not found[0].any() and torch.equal(found, centres(x, torch.ones(2000), 32, 0))
    codes = nearest(x, found)
    assert torch.equal(codes, torch.cdist(x.double(), found.double()).argmin(1))
    others = [kmeans2(x.numpy(), 32, minit="++", seed=seed, iter=30) for seed in range(3)]
    best = min(float((x - torch.from_numpy(c)[torch.from_numpy(k).long()]).square().sum()) for c, k in others)
    assert float((x - found[codes]).square().sum()) <= 1.05 * best


def test_rows_that_are_looked_up_more_are_nearer() -> None:
    table, often = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40, 60)
    program = captured(Rows(table), [(often.view(-1, 1),)])
    graph, _ = graph_of(program, ProductQuantizeTables(4, codes=16, least_bytes=0))
    off = (held(graph, NAME, sums=False) - table).square().sum(1)
    assert float(off[often].mean()) < 0.5 * float(off.mean())


def test_samples_stand_for_all_rows() -> None:
    first, second = torch.arange(1000.0)[:, None], 5000 + torch.arange(200.0)[:, None]
    counts = torch.zeros(1200, dtype=torch.long)
    counts[3], counts[1100] = 600, 600
    weights = weights_of(counts)
    assert float(weights.sum()) == pytest.approx(2 * 1200)
    rows, mass = sample([first, second], [weights[:1000], weights[1000:]], 400)
    assert len(rows) == len(mass) < 400 and float(mass.sum()) == 400
    # A quarter of all weight each, and a two-thousandth and more the others.
    assert dict(zip(rows[:, 0].tolist(), mass.tolist(), strict=True))[3.0] == pytest.approx(100, abs=2)
    assert float(mass[rows[:, 0] >= 5000].sum()) == pytest.approx(100 + 400 / 12, abs=3)
    every, mass = sample([first], [weights[:1000].index_fill(0, torch.arange(10), 0)], 1000)
    assert torch.equal(every, first[10:]) and torch.equal(mass, weights[10:1000].float())


class Fields(nn.Module):
    """Tables of one width, too small for codebooks of their own, and a large one."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(trained(8, rows=size, seed=k)) for k, size in enumerate(sizes)
        )

    def forward(self, ids: Tensor) -> Tensor:
        return torch.cat([table(ids[:, k]) for k, table in enumerate(self.tables)], 1)


def test_small_tables_share_a_codebook() -> None:
    seen = [(torch.arange(36).view(9, 4) % 20,)]
    program = captured(Fields(20, 60, 60, 6000), seen)
    graph, made = graph_of(program, ProductQuantizeTables(4, codes=32, least_bytes=0))
    assert len(made.changes) == 4 and not made.skipped
    assert [("a codebook for 3 tables" in change.detail) for change in made.changes] == [True] * 3 + [False]
    books = [name for name, _ in graph.named_buffers() if "codebook" in name]
    assert len(books) == 2
    total = sum(change.added_bytes for change in made.changes)
    assert total == 2 * 6140 + 2 * 4 * 32 * 8 and total <= tensor_bytes(graph) <= total + 200
    # Alone the smallest is left, and those of sixty have a codebook each.
    apart, alone = graph_of(program, ProductQuantizeTables(4, codes=32, share=False, least_bytes=0))
    assert [skip.site for skip in alone.skipped] == ["model.tables.0.weight"]
    assert "it takes 640 bytes, in 2 parts of 4 columns " in alone.skipped[0].reason
    assert tensor_bytes(graph) < tensor_bytes(apart)
    ids = torch.randint(20, (50, 4), generator=torch.Generator().manual_seed(0))
    tables = program.model(ids)[0]
    for each in (graph, apart):
        assert float((each(ids)[0] - tables).norm()) < 0.4 * float(tables.norm())


def test_columns_of_very_different_size_keep_their_own() -> None:
    table = trained(8)
    table[:, 2] *= 1e-3
    graph, made = graph_of(
        captured(Rows(table), traffic(1)), ProductQuantizeTables(4, least_bytes=0, codes=64)
    )
    off = held(graph, NAME, sums=False) - table
    assert float(off[:, 2].norm()) < 0.5 * float(table[:, 2].norm())
    column = re.search(r"worst column ([\d.]+)%", made.changes[0].detail)
    assert column is not None and float(column[1]) < 50


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (trained(8).index_fill(0, torch.tensor([7]), torch.nan), "holds nan"),
        (trained(8) * 1e20, r"holds .*e\+2"),
        (
            torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0)),
            "a column would be off by (8|9|10)",
        ),
        (trained(8, rows=20), "it takes 640 bytes, in 1 parts of 8 columns"),
    ],
    ids=["nan", "large", "worthless", "small"],
)
def test_what_stays_has_its_reason(table: Tensor, reason: str) -> None:
    program = captured(Rows(table), [(torch.arange(4).view(4, 1),)])
    settings = ProductQuantizeTables(64, codes=20 if len(table) == 20 else 3, least_bytes=0)
    made = settings.apply(program)
    assert made.model is program.model and made.changes == ()
    assert re.search(reason, made.skipped[0].reason), made.skipped


def test_codebooks_are_no_tables() -> None:
    technique = ProductQuantizeTables(4, codes=16, least_bytes=0)
    program = captured(Rows(trained(8)), traffic(1))
    again = program.with_model(graph_of(program, technique)[0])
    for other in (technique, QuantizeTables(8, least_bytes=0)):
        made = other.apply(again)
        assert made.changes == ()
        assert [skip.reason for skip in made.skipped] == ["its rows are what codes of other tables stand for"]


@pytest.mark.parametrize(
    "settings",
    [{"columns": 0}, {"columns": True}, {"columns": 2.0}, {"codes": 1}, {"codes": 257}, {"share": 1}, {"hot": 1.0},
     {"hot": "all"}, {"distil": -1}, {"distil": True}, {"only": "x"}],
)  # fmt: skip
def test_bad_settings_are_named(settings: Any) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        ProductQuantizeTables(**settings)


def test_milder_settings_have_hot_rows_and_then_more_parts() -> None:
    program = captured(Rows(trained(16)), traffic(1))
    steps = ProductQuantizeTables(8).milder(program, ())
    assert [(step.columns, step.hot) for step in steps if isinstance(step, ProductQuantizeTables)] == [
        (8, 0.05), (4, 0.0), (2, 0.0), (1, 0.0)
    ]  # fmt: skip
    assert ProductQuantizeTables(1).milder(replace(program, calibration=()), ()) == ()
    errors = []
    for columns in (8, 4, 2, 1):
        graph, _ = graph_of(program, ProductQuantizeTables(columns, codes=64, least_bytes=0))
        errors.append(float((held(graph, NAME, sums=False) - trained(16)).norm()))
    assert errors == sorted(errors, reverse=True)
