"""The zoo itself: every model runs at every size it claims, repeats itself, and tells rows apart."""

from __future__ import annotations

import pytest
import torch

from .checks import call, flat
from .zoo import ZOO, Entry, make


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_runs_repeats_and_varies(entry: Entry) -> None:
    model = make(entry)
    for rows in entry.sizes:
        batch = entry.batch(rows, torch.Generator().manual_seed(rows))
        first = flat(call(getattr(model, entry.entry), batch))
        again = flat(
            call(getattr(make(entry), entry.entry), entry.batch(rows, torch.Generator().manual_seed(rows)))
        )
        for a, b in zip(first, again, strict=True):
            assert a.isfinite().all()
            assert torch.equal(a, b)
    assert any(tensor.std() > 1e-4 for tensor in first)


def test_names_are_unique() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO)
