"""Which tables may be held in parts, and how they are looked up."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.distributed.sharding.tables import LookedUpTable, find_tables
from fastrec.program import Program

from .models import captured


def tables_of(
    model: nn.Module, *batch: Tensor, least: int = 0, only: set[str] | None = None
) -> list[LookedUpTable]:
    gm = capture(Program.read(model.eval(), batch)).model
    assert isinstance(gm, fx.GraphModule)
    return find_tables(gm, least, only)


class Both(nn.Module):
    """A table that is looked up, and what is done with it besides."""

    def __init__(self, also: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.also = nn.Embedding(50, 4), also

    def forward(self, ids: Tensor) -> Tensor:
        return self.also(self.table(ids), self.table.weight)


IDS = torch.randint(50, (6, 3), generator=torch.Generator().manual_seed(0))


def test_every_lookup_is_found_and_sums_where_only_they_are_read() -> None:
    gm = captured().model
    assert isinstance(gm, fx.GraphModule)
    found = {
        table.name: [(lookup.bags, lookup.sums is not None) for lookup in table.lookups]
        for table in find_tables(gm)
    }
    assert found == {
        "model.users.weight": [(False, False)],
        "model.items.weight": [(False, False), (False, True)],
        "model.genres.weight": [(True, True)],
        "model.words.weight": [(True, True)],
    }
    assert not any(table.reason for table in find_tables(gm))


def test_codes_and_float16_are_tables_too() -> None:
    for form, width in (("int8", 12 + 8), ("float16", 2 * 12)):
        gm = captured(form).model
        assert isinstance(gm, fx.GraphModule)
        users = next(table for table in find_tables(gm) if table.rows == 900)
        assert users.row_bytes == width
        assert len(users.lookups) == 1 and not users.reason


def test_a_table_that_is_read_otherwise_stays_whole() -> None:
    (table,) = tables_of(Both(lambda rows, weight: rows.sum(1) @ weight.t()), IDS)
    assert "read otherwise" in table.reason


def test_small_ones_and_others_than_asked_for_stay_whole() -> None:
    model = Both(lambda rows, weight: rows.sum(1))
    assert "less than" in tables_of(model, IDS, least=50 * 16 + 1)[0].reason
    assert not tables_of(model, IDS, least=50 * 16)[0].reason
    assert "not asked for" in tables_of(model, IDS, only=set())[0].reason


def test_ids_that_another_table_gives_are_looked_up_in_a_whole_table() -> None:
    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", torch.randint(20, (50, 2)))
            self.book = nn.Embedding(20, 4)

        def forward(self, ids: Tensor) -> Tensor:
            assert isinstance(self.codes, Tensor)
            return self.book(self.codes.index_select(0, ids)).sum(1)

    codes, book = tables_of(Codes(), IDS[:, 0])
    assert not codes.reason and "other lookups" in book.reason
    codes, book = tables_of(Codes(), IDS[:, 0], only={book.name})
    assert codes.reason and not book.reason


def test_weighted_bags_and_maxima_have_no_sums() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 4)

        def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
            table = self.table.weight
            return F.embedding_bag(ids, table, per_sample_weights=weights, mode="sum") + F.embedding_bag(
                ids, table, mode="max"
            )

    (table,) = tables_of(Weighted(), IDS, torch.rand(6, 3))
    assert [lookup.bags for lookup in table.lookups] == [True, True]
    assert [lookup.sums for lookup in table.lookups] == [None, None]
