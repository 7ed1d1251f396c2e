"""A budget of bytes: what is small enough serves, and the report says whether anything was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import Budget, compress
from fastrec.backends import Eager
from fastrec.errors import InputError
from fastrec.measure import evaluator

ROWS, WIDTH = 500, 16
FULL = ROWS * WIDTH * 4


class Scores(nn.Module):
    """One table and a layer over it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = torch.sigmoid(self.top(torch.relu(self.table(ids)))).squeeze(1)
        return out


def served(budget: Budget | None, **options: object) -> fastrec.CompressedModel:
    torch.manual_seed(0)
    return compress(
        Scores().eval(), torch.arange(8), budget=budget, backends=[Eager()], batch_sizes=(8,), seconds=30, progress=False,
        calibration=[torch.randint(ROWS, (300,))], **options,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _little_time_is_spent_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastrec.pipeline, "share", lambda *_: 0.1)
    # Faster or not is not what is asked here.
    monkeypatch.setattr(fastrec.pipeline, "worth_it", lambda result: False)


def test_what_is_small_enough_serves_and_the_original_goes() -> None:
    fast = served(Budget(bytes=FULL // 3))
    assert fast.report.met and fast.report.status == "improved" and not fast.exact
    assert fast.report.sizes[0].session == "eager"
    assert fast.report.memory.after_bytes < 0.5 * fast.report.memory.before_bytes
    assert "QuantizeTables" in str(fast.report) and "are allowed" in str(fast.report)
    torch.manual_seed(0)
    model, ids = Scores().eval(), torch.randint(ROWS, (40,))
    assert float((fast(ids) - model(ids).detach()).abs().max()) < 0.05


def test_a_limit_that_nothing_reaches_gives_the_smallest_and_is_not_met() -> None:
    fast = served(Budget(bytes=100))
    assert not fast.report.met and fast.report.status == "budget_missed"
    assert "nothing smaller was found" in str(fast.report)
    assert fast.report.memory.after_bytes < 0.5 * fast.report.memory.before_bytes


def test_a_limit_that_the_model_keeps_changes_nothing() -> None:
    fast = served(Budget(bytes=2 * FULL))
    assert fast.report.met and fast.exact and fast.report.status == "unchanged"


def test_losses_come_first_and_are_told() -> None:
    ids = torch.arange(ROWS).repeat(4)
    torch.manual_seed(0)
    scores = Scores().eval()(ids).detach()
    # Ranked without a fault, so that whatever moves the ranks loses.
    labels = (scores > scores.median()).float()
    judge = evaluator([(ids,)], labels, ["auc"])
    told = served(Budget(bytes=FULL // 3), evaluate=judge)
    assert [one.verdict for one in told.report.accuracy] == ["measured"] and told.report.met
    # Nothing may be lost, so what is small enough does not serve, but the smallest that loses nothing; the limit is not met.
    kept = served(Budget(max_loss={"auc": 0.0}, bytes=FULL // 3), evaluate=judge)
    assert kept.report.refused and not kept.report.met
    assert all(one.holds for one in kept.report.accuracy)


def test_a_budget_asks_for_something() -> None:
    for wrong in ({}, {"bytes": 0}, {"bytes": True}, {"bytes": 1.5}):
        with pytest.raises(InputError, match="Budget"):
            Budget(**wrong)  # type: ignore[arg-type]
