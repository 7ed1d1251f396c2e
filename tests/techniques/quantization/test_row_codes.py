"""Rows as small integers: how far off an entry may be, for rows of every kind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastrec.ops import INT4, INT8
from fastrec.techniques.quantization.row_codes import int4_rows, int8_rows

_pack4 = torch.ops.quantized.embedding_bag_4bit_prepack


@st.composite
def tables(draw: st.DrawFn, largest: float, even: bool = False) -> Tensor:
    """Tables of rows of very different size: constant, nearly constant, of zeros, of denormals, with one large entry."""
    width = draw(st.sampled_from([2, 4, 18] if even else [1, 2, 3, 17, 64]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        row = torch.randn(width, generator=rng, dtype=torch.float64)
        row = row.clamp(-4, 4) / 4 * largest * 10.0 ** draw(st.integers(-50, 0))
        kind = draw(st.sampled_from(["plain", "zero", "constant", "nearly", "shifted", "outlier"]))
        if kind == "zero":
            row = torch.zeros_like(row)
        elif kind == "constant":
            row = row[:1].repeat(width)
        elif kind == "nearly":
            row = row[:1] * (1 + 1e-6 * torch.randn(width, generator=rng, dtype=torch.float64))
        elif kind == "shifted":
            row = row / 1e3 + row.abs().max()
        elif kind == "outlier":
            row[-1] = largest / 2
        rows.append(row.clamp(-largest, largest))
    return torch.stack(rows).float()


def step_of(rows: Tensor) -> Tensor:
    return rows[:, -8:-4].clone(memory_format=torch.contiguous_format).view(torch.float32).double()


def read(lookup: object, rows: Tensor) -> Tensor:
    found: Tensor = lookup(rows, torch.arange(len(rows)))  # type: ignore[operator]
    return found.double()


@given(tables(1e37))
@settings(max_examples=150, deadline=None)
def test_with_8_bits_no_entry_is_off_by_more_than_half_a_step(table: Tensor) -> None:
    rows = int8_rows(table)
    assert rows.shape == (len(table), table.shape[1] + 8) and rows.dtype is torch.uint8
    exact, found, step = table.double(), read(INT8, rows), step_of(rows)
    # The result is rounded to a float32 as well.
    rounding = torch.finfo(torch.float32).eps * (exact.abs().amax(1, keepdim=True) + step)
    assert ((found - exact).abs() <= step / 2 + rounding + 1e-45).all()
    size = exact.amax(1, keepdim=True) - exact.amin(1, keepdim=True)
    assert (step <= size / 255 * (1 + 1e-6) + 2e-45).all()
    constant = size.squeeze(1) == 0
    assert torch.equal(found[constant], exact[constant])


@given(tables(65504.0, even=True))
@settings(max_examples=100, deadline=None)
def test_with_4_bits_no_row_is_worse_than_by_its_own_range(table: Tensor) -> None:
    rows = int4_rows(table)
    assert rows.shape == (len(table), table.shape[1] // 2 + 4) and rows.dtype is torch.uint8
    exact, found = table.double(), read(INT4, rows)
    plain = read(INT4, _pack4(table))
    assert found.isfinite().all()

    def error(other: Tensor) -> Tensor:
        return (other - exact).square().sum(1).nan_to_num(nan=torch.inf)

    rounding = 1e-6 * exact.square().sum(1) + 1e-80
    assert (error(found) <= error(plain) + rounding).all()
    zero = exact.abs().amax(1) == 0
    assert not found[zero].any()


@pytest.mark.parametrize(("width", "most"), [(16, 0.059), (64, 0.084)])
def test_the_search_pays_on_gaussian_rows(width: int, most: float) -> None:
    table = torch.randn(4000, width, generator=torch.Generator().manual_seed(0))
    exact = table.double()
    found, plain = read(INT4, int4_rows(table)), read(INT4, _pack4(table))
    error, before = (float((x - exact).norm() / exact.norm()) for x in (found, plain))
    assert error < most and error < 0.94 * before


def test_denormal_rows_keep_their_entries() -> None:
    table = torch.tensor([[1e-45, 3e-45, 0.0], [1e-40, 2e-40, 1e-41], [-1e-42, 1e-42, 0.0]])
    off = (read(INT8, int8_rows(table)) - table.double()).abs()
    assert (off <= 5e-43).all()
    assert torch.equal(read(INT8, int8_rows(table[:1])), table[:1].double())


def test_a_row_does_not_know_of_others_nor_of_chunks() -> None:
    table = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    table[7] = 1e30
    for code, rows in ((int8_rows, table), (int4_rows, table.clamp(-6e4, 6e4))):
        every = code(rows)
        some = torch.tensor([0, 6, 8, 2047, 2048, 19_999])
        assert torch.equal(code(rows[some]), every[some])
    assert len(int8_rows(table[:0])) == 0


def test_strided_tables_and_parameters() -> None:
    wide = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    for view in (wide[:, 3:9], wide[:, ::2], wide.t().contiguous().t()):
        assert torch.equal(int8_rows(view), int8_rows(view.contiguous()))
        assert torch.equal(int4_rows(view), int4_rows(view.contiguous()))
