"""The direct form gives bit for bit the graph's answer, and the bag kernel the plain lookup's rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastrec.backends.direct import direct, rows_of, same_answer

from .graphs import CASES, Case, program_of


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bit_for_bit(case: Case) -> None:
    program, _ = program_of(case)
    run = direct(program.model, program.batch)
    for rows in (0, 1, 2, 33, 2000):
        batch = case.batch(rows, torch.Generator().manual_seed(rows))
        with torch.no_grad():
            assert same_answer(run(*batch), program.model(*batch))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 7), (400, 26), (2000,)])
@pytest.mark.parametrize("width", [1, 16, 17])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_rows_are_those_of_the_table(shape: tuple[int, ...], width: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    table = torch.randn(50, width, generator=rng)
    ids = torch.randint(0, 50, shape, generator=rng, dtype=dtype)
    assert torch.equal(rows_of(table, ids), table[ids.long()])


def test_rows_of_other_layouts_and_types() -> None:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (3000,), generator=rng)
    wide = torch.randn(50, 8, generator=rng)
    for table in (wide[:, :5], wide.double(), wide.half(), wide.bfloat16(), wide.t().contiguous().t()):
        assert torch.equal(rows_of(table, ids), table[ids])
    strided = torch.randint(0, 50, (26, 200), generator=rng).t()
    assert torch.equal(rows_of(wide, strided), wide[strided])


@pytest.mark.parametrize("bad", [-1, 50])
@pytest.mark.parametrize("rows", [3, 3000])
def test_an_id_no_table_has_is_refused(bad: int, rows: int) -> None:
    ids = torch.zeros(rows, dtype=torch.int64)
    ids[-1] = bad
    with pytest.raises((IndexError, RuntimeError)):
        rows_of(torch.zeros(50, 16), ids)


def test_rows_keep_infinities_and_nans_to_themselves() -> None:
    table = torch.ones(50, 4)
    table[7], table[9] = float("nan"), float("inf")
    ids = torch.arange(50).repeat(40)
    got: Tensor = rows_of(table, ids)
    assert same_answer(got, table[ids])
