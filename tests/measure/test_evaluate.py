"""Evaluators call models as they are called, and keep rows paired."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastrec import compress
from fastrec.backends import Eager
from fastrec.errors import MeasurementError
from fastrec.measure.evaluate import evaluator


class Pair(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (left * right).sum(1)


def batches() -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    return [{"left": torch.randn(50, 3), "right": torch.randn(50, 3)} for _ in range(2)]


def test_batches_of_every_form_give_the_same_scores() -> None:
    named = batches()
    labels = torch.randint(2, (100,))
    model = Pair()
    scores = evaluator(named, labels).scores(model)
    assert (evaluator([(b["left"], b["right"]) for b in named], labels).scores(model) == scores).all()
    one = nn.Linear(3, 1)
    assert len(evaluator([named[0]["left"]], labels[:50]).scores(one)) == 50


class Batched(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"click": (batch["left"] * batch["right"]).sum(1), "buy": batch["left"][:, 0]}


def test_one_of_several_outputs_and_a_batch_that_is_one_argument() -> None:
    evaluate = evaluator(batches(), [0, 1] * 50, output="click")
    scores = evaluate.scores(Batched())
    assert (scores == evaluator(batches(), [0, 1] * 50).scores(Pair())).all()
    fast = compress(Batched(), batches()[0], backends=[Eager()], batch_sizes=(8,), seconds=2, progress=False)
    assert abs(evaluate.scores(fast) - scores).max() < 1e-5
    with pytest.raises(MeasurementError, match="no output 'like'"):
        evaluator(batches(), [0, 1] * 50, output="like").scores(Batched())
    with pytest.raises(MeasurementError, match="0 or 1"):
        evaluator(batches(), [0, 2] * 50)


def test_metrics_and_losses_agree() -> None:
    evaluate = evaluator(batches(), [0, 1] * 50, ["auc"])
    before = evaluate.scores(Pair())
    losses = evaluate.losses(before, -before)
    assert losses["auc"].before == evaluate(Pair())["auc"]
    assert losses["auc"].after == pytest.approx(1 - losses["auc"].before)


def test_what_cannot_be_evaluated_says_so() -> None:
    with pytest.raises(MeasurementError, match="unknown metrics"):
        evaluator(batches(), [0, 1], ["precision"])
    with pytest.raises(MeasurementError, match="at least one batch"):
        evaluator([], [0, 1])
    with pytest.raises(MeasurementError, match="100 scores for 2 labels"):
        evaluator(batches(), [0, 1]).scores(Pair())
    with pytest.raises(MeasurementError, match="answers a tuple"):
        evaluator(batches(), [0, 1] * 50).scores(lambda left, right: (left, right))
