"""Lookups in tables whose rows are held as small integers.

    row v  =  codes_v * scale_v + offset_v          codes (V, d), scale and offset (V,)

A row lies in one piece of bytes, as torch's own kernels for such tables expect it: its codes, then its scale and its
offset. With 8 bits these are d bytes and two float32, (V, d + 8); with 4 bits two codes share a byte, the first in the
lower half, and the numbers are float16, (V, d / 2 + 4).

Product and sum are computed in float64 and rounded once, to float32. That is what a fused multiply-add gives: the
product of a code and a float32 fits a float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._ops import OpOverload

__all__ = ["INT4", "INT8", "lookup_int4", "lookup_int8"]

_INT8_TAIL = 8
_INT4_TAIL = 4
_SCHEMA = "(Tensor rows, Tensor ids) -> Tensor"


@torch.library.custom_op("fastrec::lookup_int8", mutates_args=(), schema=_SCHEMA)
def lookup_int8(rows: Tensor, ids: Tensor) -> Tensor:
    """The rows of these ids: rows (V, d + 8) uint8, ids of any shape S, result (*S, d) float32.

    Raises `IndexError` or `RuntimeError` at ids that the table does not have.

    Example:
        >>> scale_and_offset = torch.tensor([[0.5, -1.0]]).view(torch.uint8)
        >>> lookup_int8(torch.cat([torch.tensor([[0, 4]], dtype=torch.uint8), scale_and_offset], 1), torch.tensor([0]))
        tensor([[-1.,  1.]])
    """
    width = rows.shape[1] - _INT8_TAIL
    found = rows.index_select(0, ids.reshape(-1))
    numbers = found[:, width:].clone(memory_format=torch.contiguous_format).view(torch.float32)
    return _decoded(found[:, :width], numbers).view(*ids.shape, width)


@torch.library.custom_op("fastrec::lookup_int4", mutates_args=(), schema=_SCHEMA)
def lookup_int4(rows: Tensor, ids: Tensor) -> Tensor:
    """The rows of these ids: rows (V, d / 2 + 4) uint8, ids of any shape S, result (*S, d) float32.

    Raises `IndexError` or `RuntimeError` at ids that the table does not have.

    Example:
        >>> scale_and_offset = torch.tensor([[0.5, -1.0]]).half().view(torch.uint8)
        >>> lookup_int4(torch.cat([torch.tensor([[0x40]], dtype=torch.uint8), scale_and_offset], 1), torch.tensor([0]))
        tensor([[-1.,  1.]])
    """
    half = rows.shape[1] - _INT4_TAIL
    found = rows.index_select(0, ids.reshape(-1))
    numbers = found[:, half:].clone(memory_format=torch.contiguous_format).view(torch.float16)
    pairs = found[:, :half]
    codes = torch.stack([pairs & 15, pairs >> 4], 2).flatten(1)
    return _decoded(codes, numbers).view(*ids.shape, 2 * half)


def _decoded(codes: Tensor, numbers: Tensor) -> Tensor:
    """codes (n, d), and the scale and offset of each row (n, 2)."""
    wide = numbers.double()
    return torch.addcmul(wide[:, 1:], codes.double(), wide[:, :1]).float()


@lookup_int8.register_fake
def _int8_like(rows: Tensor, ids: Tensor) -> Tensor:
    return rows.new_empty(*ids.shape, rows.shape[1] - _INT8_TAIL, dtype=torch.float32)


@lookup_int4.register_fake
def _int4_like(rows: Tensor, ids: Tensor) -> Tensor:
    return rows.new_empty(*ids.shape, 2 * (rows.shape[1] - _INT4_TAIL), dtype=torch.float32)


INT8: OpOverload = torch.ops.fastrec.lookup_int8.default
"""`lookup_int8` as a graph calls it."""

INT4: OpOverload = torch.ops.fastrec.lookup_int4.default
"""`lookup_int4` as a graph calls it."""
