"""Centroids: near what they stand for, as many as asked for at most, the same each time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastrec.techniques.sharing import clusters
from fastrec.techniques.sharing.clusters import cluster


def around(centres: int, each: int, width: int = 6, spread: float = 0.01) -> tuple[Tensor, Tensor]:
    """Rows in tight heaps, in an order of their own, and the heap of each."""
    rng = torch.Generator().manual_seed(centres)
    heaps = torch.randperm(centres * each, generator=rng) % centres
    middle = torch.randn(centres, width, generator=rng)
    return middle[heaps] + spread * torch.randn(centres * each, width, generator=rng), heaps


def error(rows: Tensor, weights: Tensor, count: int) -> float:
    kept, places = cluster(rows, weights, count)
    assert len(kept) <= count and set(places.tolist()) == set(range(len(kept)))
    off = (kept[places] - rows).double().square().sum(1)
    return float((weights * off).sum() / (weights * rows.double().square().sum(1)).sum()) ** 0.5


@pytest.mark.parametrize("small", [1, 400, 1 << 21])
def test_heaps_are_found_whether_divided_first_or_not(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_SMALL", small)
    monkeypatch.setattr(clusters, "_PART", 100)
    rows, _ = around(12, 50)
    weights = torch.ones(600, dtype=torch.float64)
    found = error(rows, weights, 60)
    # A row in place of another of its heap is off by 1 %; one of another heap by 140 %.
    assert found < 0.02
    assert error(rows, weights, 60) == found


def test_rows_that_weigh_more_are_nearer() -> None:
    rows = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(600, dtype=torch.float64)
    weights[:60] = 1000.0
    kept, places = cluster(rows, weights, 90)
    off = (kept[places] - rows).norm(dim=1)
    assert float(off[:60].mean()) < 0.2 * float(off[60:].mean())


def test_a_mean_is_that_of_its_rows_by_weight_and_a_row_alone_is_itself() -> None:
    rows = torch.tensor([[0.1, 1.0], [0.3, 1.0], [9.1, -0.7]])
    kept, places = cluster(rows, torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64), 2)
    assert places[0] == places[1] != places[2]
    torch.testing.assert_close(kept[places[0]], torch.tensor([0.15, 1.0]))
    assert torch.equal(kept[places[2]], rows[2])
    every, own = cluster(rows, torch.ones(3, dtype=torch.float64), 3)
    assert torch.equal(every[own], rows)


def test_columns_of_another_size_count_alike() -> None:
    rng = torch.Generator().manual_seed(0)
    # Two kinds of rows differ in small columns alone, and a large one says nothing.
    kind = torch.arange(400) % 2
    rows = torch.cat([0.01 * (1.0 - 2.0 * kind)[:, None].repeat(1, 7), torch.randn(400, 1, generator=rng)], 1)
    kept, places = cluster(rows, torch.ones(400, dtype=torch.float64), 20)
    assert torch.allclose(kept[places][:, :7], rows[:, :7])


def test_rows_that_cannot_be_told_apart_are_divided_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_SMALL", 64)
    rows = torch.ones(500, 3)
    rows[:, 0] += torch.arange(500) * 1e-7
    assert error(rows, torch.ones(500, dtype=torch.float64), 50) < 1e-4


def test_shares_add_up() -> None:
    for count, mass, most in (
        (10, [1.0, 1.0, 98.0], [5, 5, 4]),
        (3, [0.1, 0.1, 9.0], [9, 9, 9]),
        (7, [5.0, 1.0], [3, 9]),
    ):
        shares = clusters._shares(count, mass, most)
        assert sum(shares) == count and all(1 <= one <= high for one, high in zip(shares, most, strict=True))
