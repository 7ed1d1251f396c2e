"""Rows are one exactly where their bits are, and tables are kept the cheapest of the ways there are."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastrec.techniques.sharing import equal
from fastrec.techniques.sharing.equal import digest, row_labels, same_bits
from fastrec.techniques.sharing.pools import pools

# Numbers that are equal and bits that are not, and the other way round.
ENTRIES = [0.0, -0.0, 1.0, float("nan"), float("inf"), 1e-45, 2.0]


def drawn(rows: list[list[float]], width: int) -> Tensor:
    return torch.tensor([[row[k % len(row)] for k in range(width)] for row in rows])


def keys(table: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in table.view(torch.int32).tolist()]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.sampled_from(ENTRIES), min_size=1, max_size=3), min_size=1, max_size=9),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 4),
    st.booleans(),
)
def test_labels_say_which_rows_hold_the_same_bits(
    given_rows: list[list[list[float]]], width: int, collide: bool
) -> None:
    tables = [drawn(rows, width) for rows in given_rows]
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # a hash that says nothing may lose what is shared, and never joins what differs
            patch.setattr(equal, "_hashes", lambda bits: bits[:, 0].long() * 0)
        labels = row_labels(tables)
    assert [len(mine) for mine in labels] == [len(table) for table in tables]
    flat = torch.cat(labels).tolist()
    every = [key for table in tables for key in keys(table)]
    # They count up in the order in which rows first appear.
    assert list(dict.fromkeys(flat)) == list(range(len(set(flat))))
    for (a, one), (b, other) in itertools.combinations(zip(flat, every, strict=True), 2):
        assert one == other if a == b else collide or one != other


def test_bits_are_compared_and_not_numbers() -> None:
    zero, minus = torch.zeros(3, 2), -torch.zeros(3, 2)
    nan = torch.full((3, 2), torch.nan)
    assert torch.equal(zero, minus) and not same_bits(zero, minus) and digest(zero) != digest(minus)
    assert not torch.equal(nan, nan) and same_bits(nan, nan.clone()) and digest(nan) == digest(nan.clone())
    turned = torch.arange(6.0).view(2, 3).t()
    assert digest(turned) == digest(turned.contiguous()) and same_bits(turned, turned.contiguous())


def cost(labels: list[list[int]], width: int) -> tuple[int, list[list[int]]]:
    """Bytes that the pools take, and the label that each row of each table leads to."""
    tables = [torch.tensor(mine) for mine in labels]
    total, read = 0, [[0]] * len(labels)
    for pool in pools(tables, width):
        held = torch.cat([tables[k][rows] for k, rows in zip(pool.members, pool.rows, strict=True)])
        assert len(held) == pool.size
        total += 4 * width * pool.size
        for k, places in zip(pool.members, pool.places, strict=True):
            total += 0 if places is None else 4 * len(places)
            read[k] = held[: len(tables[k]) if places is None else None][
                torch.arange(len(tables[k])) if places is None else places.long()
            ].tolist()
    return total, read


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=15), min_size=1, max_size=4),
    st.sampled_from([1, 2, 8]),
)
def test_pools_give_every_row_and_take_no_more_than_tables_apart(labels: list[list[int]], width: int) -> None:
    total, read = cost(labels, width)
    assert read == labels
    apart = sum(min(4 * width * len(m), 4 * len(m) + 4 * width * len(set(m))) for m in labels)
    assert total <= apart


def test_a_table_whose_rows_another_has_is_a_map_alone() -> None:
    whole, some, other = list(range(10)), [3, 1, 4, 1, 5], list(range(20, 29))
    assert cost([some, whole, other], 8)[0] == 4 * 8 * 10 + 4 * 5 + 4 * 8 * 9
    # Rows that it lacks are put behind; the ids of the first are places as they are.
    assert cost([whole, [*range(7), 50]], 8)[0] == 4 * 8 * 11 + 4 * 8
    # At width 1 a map takes what it saves.
    assert cost([[1] * 10, [1] * 5], 1)[0] == 4 * 15
