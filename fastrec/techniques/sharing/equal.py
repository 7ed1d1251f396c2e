"""What is equal bit by bit: whole tensors, and rows of tables.

Rows are told apart by a hash of 64 bits, h(x) = sum_j a_j bits(x_j) mod 2^64 with odd a_j, and those of one hash are
compared in full. Bits are compared, not numbers: 0.0 and -0.0 are different, and a NaN is equal to itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .parts import parts

__all__ = ["digest", "distinct", "row_labels", "same_bits"]


def digest(tensor: Tensor) -> bytes:
    """A hash of a tensor's bytes in the order of its elements. Cost: 1 s for a GB."""
    return hashlib.blake2b(_bytes(tensor).numpy().data, digest_size=16).digest()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape and type hold the same bits."""
    return torch.equal(_bytes(one), _bytes(other))


def row_labels(tables: Sequence[Tensor]) -> list[Tensor]:
    """A number for each row of float32 tables (V_i, d): the same exactly where rows are equal bit by bit.

    Numbers count up from 0 in the order in which rows first appear. Cost: 2 s for a million rows of 64; a copy of the
    tables where they are several.
    """
    bits = torch.cat([_bits(table) for table in tables]) if len(tables) > 1 else _bits(tables[0])
    _, labels = torch.unique(_hashes(bits), return_inverse=True)
    first = distinct(labels)
    apart = _differ(bits, first[labels])
    if len(apart):
        # One hash and other bits: those rows are shared with no other.
        labels[apart] = len(first) + torch.arange(len(apart))
        first = distinct(labels)
    order = torch.empty_like(first)
    order[first.argsort()] = torch.arange(len(first))
    return list(torch.split(order[labels], [len(table) for table in tables]))


def distinct(labels: Tensor) -> Tensor:
    """Where each label (n,) first appears, by ascending label."""
    order = labels.argsort(stable=True)
    ordered = labels[order]
    starts = torch.ones(len(labels), dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    return order[starts]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _bits(table: Tensor) -> Tensor:
    return table.detach().contiguous().view(torch.int32)


def _hashes(bits: Tensor) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    limits = torch.iinfo(torch.int64)
    factors = torch.randint(limits.min, limits.max, (bits.shape[1],), generator=rng) | 1
    return torch.cat([(bits[part].long() * factors).sum(1) for part in parts(*bits.shape)])


def _differ(bits: Tensor, others: Tensor) -> Tensor:
    """Which rows are not equal to those of these numbers."""
    found = [(bits[part] != bits[others[part]]).any(1) for part in parts(*bits.shape)]
    return torch.cat(found).nonzero().squeeze(1)
