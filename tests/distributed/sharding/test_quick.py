"""Quick calls are taken where they give the same bits, and only there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, fx

from fastrec.backends.coded_rows import QUICK
from fastrec.distributed.sharding import quick as module
from fastrec.distributed.sharding.quick import Quick, quick
from fastrec.ops import INT4, INT8

from .models import batch, captured


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    module._compared.cache_clear()
    yield
    module._compared.cache_clear()


@pytest.mark.parametrize(("lookup", "row_bytes"), [(INT8, 20), (INT4, 12)])
def test_a_kernel_serves_that_agrees(lookup: object, row_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = quick(lookup, row_bytes)
    assert chosen in (lookup, QUICK.get(lookup))
    rows = torch.randint(100, (5, row_bytes), dtype=torch.uint8)
    assert torch.equal(chosen(rows, torch.tensor([3, 1])), lookup(rows, torch.tensor([3, 1])))  # type: ignore[operator]

    def off(rows: Tensor, ids: Tensor) -> Tensor:
        return lookup(rows, ids) * 1.0000002  # type: ignore[operator,no-any-return]

    module._compared.cache_clear()
    monkeypatch.setitem(QUICK, lookup, off)
    assert quick(lookup, row_bytes) is lookup
    module._compared.cache_clear()
    monkeypatch.delitem(QUICK, lookup)
    assert quick(lookup, row_bytes) is lookup


def test_other_operators_are_themselves() -> None:
    embedding = torch.ops.aten.embedding.default
    assert quick(embedding, 48) is embedding


def test_a_graph_gives_its_bits_whatever_comes_first() -> None:
    gm = captured().model
    assert isinstance(gm, fx.GraphModule)
    made = Quick(gm)
    with torch.no_grad():
        for rows in (0, 5, 0, 1, 300):
            assert torch.equal(made(*batch(rows, 1))[0], gm(*batch(rows, 1))[0])
    assert made._run is not None
