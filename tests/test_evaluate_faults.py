"""What cannot be judged is never certified: eight ways in which labelled rows and calibration go wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import Budget, CompressedModel, InputError, MeasurementError, compress
from fastrec.backends import Eager
from fastrec.measure import evaluator
from fastrec.techniques import Fuse, QuantizeTables

ROWS = 4000


class Pairs(nn.Module):
    """How likely a user is to like an item, by the product of their rows."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(200, 16), nn.Embedding(300, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.sigmoid((self.user(ids[:, 0]) * self.item(ids[:, 1])).sum(1))


Rows = tuple[Pairs, Tensor, Tensor]


@pytest.fixture(scope="module")
def rows() -> Rows:
    torch.manual_seed(0)
    model, ids = Pairs().eval(), torch.randint(200, (ROWS, 2))
    with torch.no_grad():
        return model, ids, torch.bernoulli(model(ids))


def run(model: nn.Module, ids: Tensor, evaluate: Any, **options: Any) -> CompressedModel:
    return compress(
        model, ids[:64], recipe=[Fuse(), QuantizeTables(least_bytes=0)], evaluate=evaluate,
        budget=Budget({"auc": 0.01}), backends=[Eager()], batch_sizes=(1,), seconds=1, progress=False, **options,
    )  # fmt: skip


def certified(fast: CompressedModel) -> bool:
    """Whether anything that approximates was let through."""
    lossy = any(step.changes and not step.exact for step in fast.report.steps)
    return lossy or any(one.verdict == "certified" for one in fast.report.accuracy)


def test_what_is_sound_is_certified(rows: Rows) -> None:
    model, ids, labels = rows
    fast = run(model, ids, evaluator([ids], labels), calibration=ids.split(1000))
    assert certified(fast) and not fast.report.refused


def test_an_evaluate_that_gives_nan_is_named(rows: Rows) -> None:
    model, ids, _ = rows
    with pytest.raises(MeasurementError, match=r"finite numbers.*got {'auc': nan} of the original"):
        run(model, ids, lambda model: {"auc": float("nan")})


def test_an_evaluate_that_raises_is_named_with_its_reason(rows: Rows) -> None:
    model, ids, _ = rows

    def evaluate(model: nn.Module) -> dict[str, float]:
        raise ZeroDivisionError("no rows today")

    with pytest.raises(
        MeasurementError, match=r"evaluate failed on the original: ZeroDivisionError: no rows today"
    ) as told:
        run(model, ids, evaluate)
    assert isinstance(told.value.__cause__, ZeroDivisionError)


def test_labels_of_one_class_are_named(rows: Rows) -> None:
    model, ids, labels = rows
    with pytest.raises(MeasurementError, match="auc: all 4000 labels are alike"):
        run(model, ids, evaluator([ids], labels * 0))


def test_ten_rows_certify_nothing(rows: Rows) -> None:
    model, ids, labels = rows
    chosen = torch.cat([labels.nonzero()[:5, 0], (1 - labels).nonzero()[:5, 0]])
    fast = run(model, ids, evaluator([ids[chosen]], labels[chosen]))
    assert not certified(fast)
    assert "not certifiable: needs about" in fast.report.refused[0].reason
    assert "got 10" in fast.report.refused[0].reason


def empty() -> Iterator[Tensor]:
    yield from ()


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        (empty(), "calibration has no batches.*a generator is empty once it was read"),
        ([torch.full((500, 2), 7)] * 3, "calibration has one row, or one row again and again"),
        ([torch.tensor([[7, 8]])], "calibration has one row"),
        ([{"wrong": torch.zeros(100, 2, dtype=torch.long)}], "calibration batch 0: .*wrong"),
    ],
    ids=["empty", "constant", "one row", "wrong keys"],
)
def test_a_calibration_that_says_nothing_is_named(rows: Rows, calibration: Any, words: str) -> None:
    model, ids, labels = rows
    with pytest.raises(InputError, match=words):
        run(model, ids, evaluator([ids], labels), calibration=calibration)


def test_an_evaluate_that_fails_on_what_the_recipe_made_refuses_it(
    rows: Rows,
) -> None:
    model, ids, _ = rows
    for fault, words in (
        (lambda: {"auc": float("inf")}, r"finite numbers.*of what the recipe made"),
        (lambda: {"loss": 0.1}, r"gave \['auc'\] of the original, and no \['auc'\] of what the recipe made"),
        (lambda: 1 / 0, "failed on what the recipe made: ZeroDivisionError"),
    ):
        calls: list[int] = []

        def evaluate(model: nn.Module, calls: list[int] = calls, fault: Any = fault) -> Any:
            calls.append(1)
            # The original, then two settings of the tables, then what serves, which is exact.
            return fault() if 1 < len(calls) <= 3 else {"auc": 0.8}

        fast = run(model, ids, evaluate)
        assert not certified(fast)
        assert len(calls) == 4 and len(fast.report.refused) == 2
        assert all(re.search(words, skip.reason) for skip in fast.report.refused)
