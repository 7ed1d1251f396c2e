"""Which columns are kept: by what is looked up, and by what reads it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastrec.techniques.projection.bases import (
    balanced,
    basis_of_maps,
    basis_of_products,
    rank_for,
    row_moments,
    table_moments,
)


def spread(rows: int, width: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=rng, dtype=torch.float64) @ torch.randn(
        width, width, generator=rng, dtype=torch.float64
    )


def kept(x: Tensor, basis: object) -> Tensor:
    mean, encode, decode = basis.mean, basis.encode, basis.decode  # type: ignore[attr-defined]
    return mean + (x - mean) @ encode @ decode.t()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_basis_of_maps_loses_as_little_of_what_they_make_as_any_could(rank: int) -> None:
    x, weight = spread(500, 6), spread(4, 6, 1)
    moments = row_moments(x)
    basis = basis_of_maps(moments, weight, 1.0, rank, 1, centred=True)
    lost = ((kept(x, basis) - x) @ weight.t()).square().sum(1).mean()
    # Eckart and Young: what is left of the singular values of the centred results.
    values = torch.linalg.svdvals((x - x.mean(0)) @ weight.t()).square() / len(x)
    assert torch.allclose(lost, values[rank:].sum(), atol=1e-9)
    assert basis.kept == pytest.approx(float(values[:rank].sum() / values.sum()))
    plain = basis_of_products(moments, 1.0, rank, 1)
    assert lost <= ((kept(x, plain) - x) @ weight.t()).square().sum(1).mean() + 1e-9


def test_the_basis_of_products_is_a_rotation_with_even_columns() -> None:
    x = spread(500, 6)
    basis = basis_of_products(row_moments(x), 1.0, 4, 1)
    assert torch.allclose(basis.encode.t() @ basis.encode, torch.eye(4, dtype=torch.float64))
    columns = (x @ basis.encode).square().mean(0)
    assert torch.allclose(columns, columns.mean().expand(4), rtol=1e-6)
    assert not basis.mean.any()


def test_energies_are_made_even_by_a_rotation() -> None:
    for energies in ([5.0, 0.0, 0.0], [1.0, 2.0, 3.0, 100.0, 1e-9], [2.0, 2.0], [7.0], []):
        held = torch.tensor(energies, dtype=torch.float64)
        turn = balanced(held)
        assert torch.allclose(turn.t() @ turn, torch.eye(len(held), dtype=torch.float64), atol=1e-12)
        found = (turn.t() @ torch.diag(held) @ turn).diagonal()
        assert torch.allclose(found, held.mean().expand_as(found), rtol=1e-6)


def test_rows_count_as_often_as_they_are_looked_up_and_others_as_likely_as_they_were_missed() -> None:
    table, counts = spread(6, 3).float(), torch.tensor([3, 1, 2, 0, 0, 0])
    found = table_moments(table, counts)
    wide = table.double()
    seen = (3 * wide[0] + wide[1] + 2 * wide[2]) / 6
    # One of six lookups was of a row seen once: so likely is the next to be of one not seen.
    assert torch.allclose(found.mean, 5 / 6 * seen + 1 / 6 * wide[3:].mean(0))
    twice = table_moments(table, torch.tensor([2, 2, 2, 0, 0, 0]))
    assert torch.allclose(twice.second, wide[:3].t() @ wide[:3] / 3)
    assert torch.allclose(table_moments(table, torch.zeros(6, dtype=torch.int64)).mean, wide.mean(0))


def test_ranks_hold_the_energy_in_multiples_and_never_more_than_there_is() -> None:
    energies = torch.tensor([50.0, 30.0, 15.0, 5.0, 0.0, 0.0], dtype=torch.float64)
    assert [rank_for(energies, share, 1) for share in (0.5, 0.51, 0.95, 0.96, 1.0)] == [1, 2, 3, 4, 4]
    assert [rank_for(energies, share, 4) for share in (0.5, 1.0)] == [4, 4]
    assert rank_for(energies.flip(0) * 0, 0.9, 4) == 4
    assert rank_for(torch.ones(6, dtype=torch.float64), 0.9, 4) == 6
