"""Related tables: which are maps of others, what is read of them, and which stay, with the reason."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.errors import InputError
from fastrec.graph import is_call
from fastrec.measure import tensor_bytes
from fastrec.program import Program
from fastrec.techniques import Applied, Fuse, RelateTables
from fastrec.techniques.sharing.linear_maps import linear_map
from tests.checks import assert_as_good, double

RELATE = RelateTables(least_bytes=0)
V = 400


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Fields(nn.Module):
    """Embeddings, first-order weights and a table of another tower by one column; something else by the other."""

    def __init__(self, wide: Tensor, first: Tensor, tower: Tensor, other: Tensor) -> None:
        super().__init__()
        self.wide, self.first = nn.Embedding.from_pretrained(wide), nn.Embedding.from_pretrained(first)
        self.tower = nn.EmbeddingBag.from_pretrained(tower, mode="mean")
        self.other = nn.Embedding.from_pretrained(other)

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        user = ids[:, 0]
        return (
            self.wide(user) * self.other(ids[:, 1]), self.first(user), self.tower(user.unsqueeze(1)),
            self.first(ids[:, 1]), self.tower(ids),
        )  # fmt: skip


def ids(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (rows, 2), generator=torch.Generator().manual_seed(rows + seed))


def related(odd: int = 0) -> Fields:
    """Tables that are maps of one of another, but for some rows."""
    wide, step = drawn(V, 16), drawn(16, 10, seed=1)
    wide[0] = 0
    tower = (wide.double() @ step.double()).float()
    if odd:
        tower[3 : 3 + odd] = drawn(odd, 10, seed=2) * 5
    return Fields(wide, wide @ drawn(16, 3, seed=3), tower, drawn(V, 16, seed=4))


def applied(
    model: nn.Module, technique: RelateTables, batch: Tensor
) -> tuple[fx.GraphModule, Applied, Program]:
    program = capture(Program.read(model.eval(), (batch,)))
    made = technique.apply(program)
    assert isinstance(made.model, fx.GraphModule)
    return made.model, made, program


@pytest.mark.parametrize("odd", [0, 30])
@pytest.mark.parametrize("fuse", [False, True])
def test_maps_of_other_tables_are_found_and_answers_are_the_same_up_to_rounding(odd: int, fuse: bool) -> None:
    model = related(odd)
    graph, made, program = applied(model, RELATE, ids(6))
    found = {change.site: change for change in made.changes}
    assert set(found) == {"model.first.weight", "model.tower.weight"}
    kept = f"{odd} rows kept" if odd else "0 rows kept"
    assert (
        kept in found["model.tower.weight"].detail
        and "model.wide.weight" in found["model.tower.weight"].detail
    )
    more = 4 * V + 40 * (1 + odd) if odd else 0
    assert found["model.tower.weight"].added_bytes == 4 * 160 + more
    assert tensor_bytes(graph) == 2 * 4 * 16 * V + 4 * 16 * 3 + 4 * 160 + more
    assert [skip.site for skip in made.skipped] == ["model.other.weight"]
    if fuse:
        graph = Fuse().apply(program.with_model(graph)).model  # type: ignore[assignment]  # a graph's is one
    for rows in (0, 1, 33):
        with torch.no_grad():
            assert_as_good(
                list(graph(ids(rows, 9))), list(model(ids(rows, 9))), double(model, "forward", ids(rows, 9))
            )
    # Padding is what it was.
    assert torch.equal(graph(torch.zeros(1, 2, dtype=torch.long))[2], torch.zeros(1, 10))
    again = RELATE.apply(program.with_model(made.model))
    assert again.changes == ()


def test_tables_that_are_nearly_maps_are_related_where_that_is_allowed() -> None:
    wide = drawn(V, 16)
    tower = wide @ drawn(16, 10, seed=1)
    tower += 0.02 * tower.norm() / (V * 10) ** 0.5 * drawn(V, 10, seed=2)
    tower[7] = 40.0  # a row of its own, and one that is looked up
    model = Fields(wide, drawn(V, 1, seed=3), tower, drawn(V, 16, seed=4))
    batch = torch.full((6, 2), 7)
    assert applied(model, RELATE, batch)[1].changes == ()
    graph, made, _ = applied(model, replace(RELATE, worst=0.05), batch)
    (change,) = made.changes
    assert change.site == "model.tower.weight"
    text = re.search(r"1 rows kept, the others off by ([\d.e-]+) of their size", change.detail)
    assert text and float(text[1]) < 0.05
    user = torch.stack([torch.arange(V), torch.arange(V)], 1)
    found = graph(user)[2]
    torch.testing.assert_close(found[7], tower[7])
    others = torch.arange(V) != 7
    assert float((found - tower)[others].norm() / tower[others].norm()) < 0.03
    assert not torch.allclose(found[others], tower[others], rtol=1e-3)
    reason = {skip.site: skip.reason for skip in made.skipped}["model.first.weight"]
    assert re.match(
        r"of model.\w+.weight: rows are off by 0.\d+ of their size, and with \d+ of them kept", reason
    )


def test_rows_that_have_nothing_to_do_with_the_map_do_not_bend_it() -> None:
    a, right = drawn(1000, 8), drawn(8, 5, seed=1)
    b = a @ right
    b[::4] = 30 * drawn(250, 5, seed=2)
    weights = torch.ones(1000, dtype=torch.float64)
    torch.testing.assert_close(linear_map(a, b, weights), right, rtol=1e-5, atol=1e-5)
    # Columns that say the same leave no single map: any will do.
    twice = torch.cat([a, a], 1)
    torch.testing.assert_close(twice @ linear_map(twice, a @ right, weights), a @ right, rtol=1e-5, atol=1e-5)


def test_what_stays_has_its_reason() -> None:
    wide = drawn(V, 16)
    padded = wide @ drawn(16, 10, seed=1)
    padded[0] = 0
    model = Fields(wide, drawn(V, 3, seed=3), padded, drawn(V + 1, 16, seed=4))
    made = applied(model, RELATE, ids(6))[1]
    assert made.changes == ()
    reasons = {skip.site: skip.reason for skip in made.skipped}
    assert reasons["model.other.weight"] == "no other table of as many rows is looked up by the same ids"
    assert "takes" in reasons["model.wide.weight"]
    # So few rows are a map of anything, which takes more than they do.
    few = applied(Fields(drawn(9, 16), drawn(9, 3), drawn(9, 10), drawn(9, 16)), RELATE, ids(6) % 9)[1]
    assert few.changes == ()
    assert any(skip.reason.endswith("the map takes 192 bytes, the table 108") for skip in few.skipped)
    lone = Fields(
        wide,
        wide[:, :3].index_fill(0, torch.tensor([5]), 0),
        wide.index_fill(0, torch.tensor([2]), torch.nan),
        wide,
    )
    reasons = {skip.site: skip.reason for skip in applied(lone, RELATE, ids(6))[1].skipped}
    assert reasons["model.first.weight"].endswith("it has a row of zeros where the other has none")
    assert reasons["model.tower.weight"] == "it holds NaN or infinities"


def test_after_fusion_a_map_of_a_map_is_one() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.wide = nn.Embedding(V, 16)
            self.tower = nn.Embedding.from_pretrained(self.wide.weight.detach() @ drawn(16, 10, seed=1))
            self.one, self.two = nn.Linear(16, 5), nn.Linear(10, 5)

        def forward(self, user: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(self.wide(user)).exp(), self.two(self.tower(user)).exp()

    model = Heads()
    graph, made, program = applied(model, RELATE, ids(6)[:, 0])
    assert len(made.changes) == 1
    fused = Fuse(fold_bytes=0).apply(program.with_model(graph)).model
    assert isinstance(fused, fx.GraphModule)
    assert sum(is_call(node, torch.ops.aten.linear.default) for node in fused.graph.nodes) <= 2
    user = ids(20)[:, 0]
    for found, right in zip(fused(user), model(user), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("worst", [-0.1, 1, float("nan"), False, "all", None])
def test_bad_settings_are_named(worst: Any) -> None:
    with pytest.raises(InputError, match="worst"):
        RelateTables(worst=worst)


def test_milder_settings_lose_less() -> None:
    program = Program.read(nn.Linear(2, 1).eval(), torch.randn(3, 2))
    milder = RelateTables(worst=0.2, least_bytes=3).milder(program, ())
    assert milder == (RelateTables(worst=0.05, least_bytes=3), RelateTables(least_bytes=3))
    assert RelateTables().milder(program, ()) == ()
