"""A plan as data and as text."""

from __future__ import annotations

import dataclasses

import pytest

from fastrec import InputError
from fastrec.distributed.sharding import Piece, Placed, ShardPlan

HELD = Placed(
    "users", "rows", 10, 64, (Piece(0, 4, 0), Piece(4, 10, 1)), (7, 9), ("rows", "sums"), 2.0, 0.25, 1.5, 24.0
)
WHOLE = Placed("days", "whole", 7, 64, reason="it is small")
PLAN = ShardPlan(2, (HELD, WHOLE), 1024, 512, 8, 16)


def test_what_each_rank_holds() -> None:
    assert [HELD.bytes_on(rank) for rank in range(3)] == [64 * 6, 64 * 8, 64 * 2]
    assert [PLAN.bytes_on(rank) for rank in range(2)] == [1024 + 64 * 7 + 64 * 6, 1024 + 64 * 7 + 64 * 8]
    assert HELD.part(1) == Piece(4, 10, 1)
    assert HELD.part(2) == Piece(0, 0, 2)
    assert PLAN.sharded == (HELD,)
    assert PLAN.per_sample == 25.5


def test_it_travels_as_text_and_another_plan_is_another() -> None:
    again = ShardPlan.from_json(PLAN.to_json())
    assert again == PLAN and again.digest == PLAN.digest
    assert dataclasses.replace(PLAN, per_call=24).digest != PLAN.digest
    with pytest.raises(InputError, match="schema"):
        ShardPlan.from_json(PLAN.to_json().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(InputError, match="plan"):
        ShardPlan.from_json("[]")


def test_printed_it_says_what_is_held_and_what_travels() -> None:
    text = str(PLAN)
    assert (
        "| users | 10 | 640 B | some rows on each | 2 (25.0 % of reads) | 2.00 | rows and sums | 1.5 B | 24 B |"
        in text
    )
    assert "| all else | | 1.44 KiB | whole on each |" in text
    assert "25.5 B a sample and rank over the network, and 16 B to each other rank" in text
    assert "rank 0 holds 1.81 KiB, rank 1 holds 1.94 KiB" in text
