"""Lookups of coded rows: the formula, torch's own kernels, and no row that knows of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrec.ops import INT4, INT8

KERNELS = torch.ops.quantized
each = pytest.mark.parametrize(
    ("lookup", "pack", "unpack"),
    [
        (INT8, KERNELS.embedding_bag_byte_prepack, KERNELS.embedding_bag_byte_unpack),
        (INT4, KERNELS.embedding_bag_4bit_prepack, KERNELS.embedding_bag_4bit_unpack),
    ],
    ids=["int8", "int4"],
)


def rows_of(lookup: Any, count: int, width: int) -> tuple[Tensor, Tensor]:
    """Coded rows, and what they mean by the formula, in float64."""
    rng = torch.Generator().manual_seed(count + width)
    top, kind = (256, torch.float32) if lookup is INT8 else (16, torch.float16)
    codes = torch.randint(top, (count, width), generator=rng)
    numbers = torch.randn(count, 2, generator=rng).to(kind)
    small = codes.to(torch.uint8)
    if lookup is INT4:
        small = small[:, ::2] + 16 * small[:, 1::2]
    meant = codes.double() * numbers[:, :1].double() + numbers[:, 1:].double()
    return torch.cat([small, numbers.view(torch.uint8)], 1), meant


@each
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 26), (2, 3, 4), (0, 5)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_row_is_codes_times_scale_plus_offset(
    lookup: Any, pack: Any, unpack: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    for width in (2, 16, 18):
        rows, meant = rows_of(lookup, 50, width)
        ids = torch.randint(50, shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
        found = lookup(rows, ids)
        assert found.dtype is torch.float32 and found.shape == (*shape, width)
        # Rounded once: the float32 nearest to what is meant.
        assert torch.equal(found, meant[ids.long()].float())


@each
def test_rows_as_torch_writes_them(
    lookup: Any, pack: Callable[[Tensor], Tensor], unpack: Callable[[Tensor], Tensor]
) -> None:
    table = torch.randn(300, 24, generator=torch.Generator().manual_seed(0))
    rows = pack(table)
    ids = torch.randint(300, (40, 5), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(lookup(rows, ids), unpack(rows)[ids], rtol=1e-6, atol=1e-6)


@each
def test_a_row_alone_is_the_row_in_any_batch(lookup: Any, pack: Any, unpack: Any) -> None:
    rows, _ = rows_of(lookup, 64, 16)
    kind = torch.float32 if lookup is INT8 else torch.float16
    rows[0, -2 * kind.itemsize :] = torch.tensor([1e3, 1e4], dtype=kind).view(torch.uint8)
    ids = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    together = lookup(rows, ids)
    for place, one in enumerate(ids):
        assert torch.equal(lookup(rows, one), together[place])
    assert torch.equal(lookup(rows, ids.flip(0)), together.flip(0))


@each
@pytest.mark.parametrize("bad", [-1, 50])
def test_an_id_no_table_has_is_refused(lookup: Any, pack: Any, unpack: Any, bad: int) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        lookup(rows_of(lookup, 50, 4)[0], torch.tensor([0, bad]))


@each
def test_torch_knows_the_operator(lookup: Any, pack: Any, unpack: Any) -> None:
    rows, _ = rows_of(lookup, 50, 6)
    for ids in (torch.arange(10).view(2, 5), torch.tensor(3)):
        torch.library.opcheck(lookup, (rows, ids), test_utils=("test_schema", "test_faketensor"))
    with FakeTensorMode() as mode:
        found = lookup(mode.from_tensor(rows), torch.zeros(3, 2, dtype=torch.int64))
    assert found.shape == (3, 2, 6) and found.dtype is torch.float32
