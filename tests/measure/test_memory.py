"""Bytes of distinct storages, and of the process."""

from __future__ import annotations

import mmap
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from fastrec.measure.memory import resident_bytes, tensor_bytes


def test_parameters_and_buffers_count() -> None:
    assert tensor_bytes(nn.Linear(8, 4)) == 4 * (32 + 4)
    assert tensor_bytes(nn.BatchNorm1d(4)) == 4 * 16 + 8
    assert tensor_bytes(nn.Linear(8, 4).half()) == 2 * (32 + 4)
    assert tensor_bytes() == 0


def test_a_tied_table_counts_once_within_and_across_modules() -> None:
    a, b = nn.Embedding(100, 8), nn.Embedding(100, 8)
    apart = tensor_bytes(a, b)
    b.weight = a.weight
    assert tensor_bytes(nn.ModuleList([a, b])) == tensor_bytes(a, b) == apart // 2 == 3200


def test_views_count_the_storage_they_keep_alive_once() -> None:
    stacked = torch.zeros(1000, 4)
    holder = nn.Module()
    holder.register_buffer("first", stacked[:10])
    assert tensor_bytes(holder) == 16_000
    holder.register_buffer("second", stacked[500:].t())
    assert tensor_bytes(holder) == 16_000


def test_tensors_in_plain_attributes_and_containers_count() -> None:
    holder = nn.Module()
    holder.plain = torch.zeros(10)
    nested: dict[str, Any] = {"a": [torch.zeros(5), (torch.zeros(5),)], "b": "text"}
    nested["self"] = nested
    vars(holder)["nested"] = nested
    assert tensor_bytes(holder) == 80


@pytest.mark.filterwarnings("ignore:Sparse")
def test_meta_tensors_hold_nothing_and_sparse_ones_their_parts() -> None:
    assert tensor_bytes(nn.Linear(1000, 1000, device="meta")) == 0
    holder = nn.Module()
    holder.sparse = torch.eye(3).to_sparse()
    assert tensor_bytes(holder) == 2 * 3 * 8 + 3 * 4
    holder.sparse = torch.sparse_csr_tensor(torch.arange(4), torch.arange(3), torch.ones(3))
    assert tensor_bytes(holder) == 4 * 8 + 3 * 8 + 3 * 4


def test_resident_bytes_grow_with_what_is_held() -> None:
    before = resident_bytes()
    # Pages of its own: an allocator may hand out again what earlier tests have freed and the process still holds.
    held = torch.frombuffer(mmap.mmap(-1, 64 * 2**20), dtype=torch.float32).fill_(1.0)
    assert resident_bytes() - before > 0.9 * held.nbytes


def test_resident_bytes_fall_back_where_the_system_hides_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", hidden)
    assert resident_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
