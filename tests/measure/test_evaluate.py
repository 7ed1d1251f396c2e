"""Evaluators call models as they are called, and keep rows paired."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

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
