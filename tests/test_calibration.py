"""Calibration batches are batches of the model, or say what is wrong with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastrec import compress
from fastrec.backends import Eager
from fastrec.calibration import as_example
from fastrec.errors import IdOutOfRangeError, InputError
from fastrec.inputs import Feature
from fastrec.techniques import Fuse, QuantizeLinears

FEATURES = (
    Feature("ids", torch.int64, (8, 3), 0, "rows"),
    Feature("x", torch.float32, (8, 5), 0, "rows"),
    Feature("weights", torch.float32, (4,)),
)


def batch(rows: int) -> list[Tensor]:
    return [torch.zeros(rows, 3, dtype=torch.int64), torch.zeros(rows, 5), torch.zeros(4)]


def test_any_number_of_rows_will_do_and_ids_of_any_whole_type() -> None:
    for rows in (1, 8, 100):
        assert [t.shape for t in as_example(FEATURES, batch(rows))] == [(rows, 3), (rows, 5), (4,)]
    ids, *others = batch(4)
    assert as_example(FEATURES, [ids.int(), *others])[0].dtype is torch.int64


@pytest.mark.parametrize(
    ("place", "tensor", "message"),
    [
        (1, torch.zeros(6, 5).double(), r"'x': got torch.float64 of shape \(6, 5\), expected torch.float32"),
        (1, torch.zeros(6, 9), r"'x': got .* \(6, 9\), expected .* of shape \(6, 5\)"),
        (1, torch.zeros(7, 5), r"'x': got .* \(7, 5\), expected .* of shape \(6, 5\)"),
        (1, torch.zeros(6, 5, 1), r"'x': got .* \(6, 5, 1\)"),
        (0, torch.zeros(6, 3), r"'ids': got torch.float32"),
        (0, torch.zeros(6, 3, dtype=torch.bool), r"'ids': got torch.bool"),
        (2, torch.zeros(3), r"'weights': got .* \(3,\), expected .* \(4\)"),
    ],
)
def test_another_kind_is_named(place: int, tensor: Tensor, message: str) -> None:
    wrong = batch(6)
    wrong[place] = tensor
    with pytest.raises(InputError, match=message):
        as_example(FEATURES, wrong)


def test_no_rows_are_no_batch() -> None:
    with pytest.raises(InputError, match="no rows"):
        as_example(FEATURES, batch(0))


@pytest.mark.parametrize("recipe", [[Fuse()], [Fuse(), QuantizeLinears(least=0)]], ids=["exact", "int8"])
def test_compress_says_which(recipe: list[Fuse | QuantizeLinears]) -> None:
    tower = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)).eval()
    given = [torch.randn(300, 8), torch.randn(300, 8).double()]
    with pytest.raises(InputError, match=r"calibration batch 1: feature .input.: got torch\.float64"):
        compress(tower, torch.randn(4, 8), recipe=recipe, calibration=given, backends=Eager(), progress=False)


@pytest.mark.parametrize("recipe", [[Fuse()], [Fuse(), QuantizeLinears(least=0)]], ids=["exact", "int8"])
def test_ids_that_no_table_has_are_named(recipe: list[Fuse | QuantizeLinears]) -> None:
    ranker = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 1)).eval()
    known = [torch.arange(8), torch.tensor([1, 2, 10, 3])]
    with pytest.raises(IdOutOfRangeError, match=r"calibration: .*10"):
        compress(
            ranker,
            torch.arange(8),
            calibration=known,
            recipe=recipe,
            backends=[Eager()],
            seconds=1,
            progress=False,
        )


def test_what_is_exact_is_fitted_to_nothing_and_takes_any_traffic() -> None:
    tower = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)).eval()
    for known in (torch.full((8, 8), torch.nan), torch.ones(1, 8)):
        compress(
            tower, torch.randn(4, 8), calibration=[known], recipe=[Fuse()], backends=[Eager()], batch_sizes=(1,),
            on_nonfinite="propagate", seconds=1, progress=False,
        )  # fmt: skip
