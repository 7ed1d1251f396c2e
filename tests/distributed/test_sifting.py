"""Bad rows are found by what errors say, or by halves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastrec import BackendError, InputError
from fastrec.distributed.sifting import sift

N = 1024


def check_for(bad: set[int], *, telling: bool, seen: list[int]) -> object:
    def check(rows: Tensor) -> None:
        seen.append(len(rows))
        for place, row in enumerate(rows.tolist()):
            if row in bad:
                if telling:
                    raise InputError(f"feature 'x', row {place}: got {row}, too much", feature="x", row=place)
                raise IndexError(f"{row} is out of range")

    return check


@pytest.mark.parametrize("telling", [True, False])
@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_every_bad_row_is_found_and_no_other(telling: bool, count: int) -> None:
    chosen = set(torch.randperm(N, generator=torch.Generator().manual_seed(count))[:count].tolist())
    seen, bad = [], {}
    kept = sift(check_for(chosen, telling=telling, seen=seen), torch.arange(N), bad)
    assert kept.tolist() == [row for row in range(N) if row not in chosen]
    assert set(bad) == chosen
    for row, (feature, said) in bad.items():
        assert (feature, said) == (
            ("x", f"feature 'x': got {row}, too much")
            if telling
            else ("", f"IndexError: {row} is out of range")
        )
    # Named rows are looked at once more, alone.
    most = 3 * count + 1 if telling else 2 * count * math.log2(N) + 1
    assert len(seen) <= most
    assert sum(seen) <= N * (1 + min(2 * count, math.log2(N))) + count


def test_a_wrong_number_in_an_error_is_not_believed() -> None:
    def check(rows: Tensor) -> None:
        if 6 in rows.tolist():
            raise InputError("feature 'x', row 1: computed from several", feature="x", row=1)

    bad = {}
    assert sift(check, torch.arange(8), bad).tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert set(bad) == {6}


def test_an_error_of_all_rows_is_asked_for_once() -> None:
    seen = []

    def check(rows: Tensor) -> None:
        seen.append(len(rows))
        raise InputError("feature 'user', row 0: got 99", feature="user", row=0)

    bad = {}
    assert not len(sift(check, torch.arange(100), bad, {"user"}))
    assert seen == [100] and len(bad) == 100


def test_what_is_no_rows_fault_is_raised() -> None:
    def check(rows: Tensor) -> None:
        raise BackendError("gone", backend="x")

    with pytest.raises(BackendError):
        sift(check, torch.arange(3), {})
