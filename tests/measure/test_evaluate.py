"""Evaluators call models as they are called, and keep rows paired."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torch import Tensor, nn

from fastrec import Budget, compress
from fastrec.backends import Eager
from fastrec.errors import MeasurementError
from fastrec.measure.evaluate import evaluator
from fastrec.measure.loss import loss_of
from fastrec.techniques import Fuse, QuantizeTables


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
    with pytest.raises(
        MeasurementError, match=r"labels are numbers, one for each row: 0 or 1.*got \['a', 'a'\]"
    ):
        evaluator(batches(), ["a", "a"])
    with pytest.raises(MeasurementError, match="labels are numbers"):
        evaluator(batches(), [[0, 1], [0]])
    with pytest.raises(MeasurementError, match="answers one tensor, which has no output 'click'"):
        evaluator(batches(), [0, 1] * 50, output="click").scores(Pair())
    with pytest.raises(MeasurementError, match="answers a tuple"):
        evaluator(batches(), [0, 1] * 50).scores(lambda left, right: (left, right))


def scored(count: int = 400, groups: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Scores in [0, 1], labels that follow them, and groups out of order."""
    torch.manual_seed(1)
    scores = torch.rand(count)
    return scores, torch.bernoulli(scores), torch.randint(groups, (count,))


def test_groups_of_any_kind_are_those_of_the_metrics() -> None:
    scores, labels, groups = scored()
    names = ["auc", "gauc", "logloss", "ndcg@3", "mrr"]
    judge = evaluator(scores.split(100), labels, names, groups=groups)
    found = judge(nn.Identity())
    for named in (groups.numpy(), groups.tolist(), [f"user {g}" for g in groups.tolist()]):
        assert evaluator([scores], labels, names, groups=named)(nn.Identity()) == pytest.approx(found)
    losses = judge.losses(judge.scores(nn.Identity()), judge.scores(lambda x: 1 - x))
    for name in names:
        assert losses[name].before == found[name] and losses[name].groups
        direct = loss_of(name, labels.numpy(), scores.numpy(), 1 - scores.numpy(), groups.numpy())
        assert losses[name].upper == pytest.approx(direct.upper, abs=1e-6)


def test_a_matrix_of_labels_is_a_list_in_each_row() -> None:
    torch.manual_seed(0)
    scores, relevance = torch.rand(30, 8), torch.randint(4, (30, 8))
    judge = evaluator(scores.split(10), relevance, ["ndcg@5", "hit@2"])
    flat = evaluator(
        [scores.flatten()],
        relevance.flatten(),
        ["ndcg@5", "hit@2"],
        groups=torch.arange(30).repeat_interleave(8),
    )
    assert judge(nn.Identity()) == flat(nn.Identity())
    assert judge(nn.Identity())["ndcg@5"] == pytest.approx(ndcg_score(relevance, scores, k=5))


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        ([0, 1, 2, 0], {"metrics": ["ndcg@2", "auc"], "groups": [0, 0, 1, 1]}, "0 or 1 .* as auc takes.*row 2 has 2"),
        ([0, 1, -2, 0], {"metrics": ["ndcg@2"], "groups": [0, 0, 1, 1]}, "0 or above: row 2 has -2"),
        ([0, 1, math.nan, 0], {"metrics": ["mrr"], "groups": [0, 0, 1, 1]}, "0 or above: row 2 has nan"),
        ([0, 1, 1, 0], {"metrics": ["auc", "gauc", "mrr"]}, "gauc, mrr is a mean over groups: give groups="),
        ([0, 1, 1, 0], {"groups": [0, 1]}, "groups has 2 values for 4 labels"),
        ([0, 1, 1, 0], {"groups": [0.5, 1, 1, 2]}, "groups holds float64"),
    ],
)  # fmt: skip
def test_labels_and_groups_that_do_not_fit_say_so(labels: list, options: dict, words: str) -> None:
    with pytest.raises(MeasurementError, match=words):
        evaluator([torch.zeros(4)], labels, **options)


def test_segments_have_the_groups_of_their_rows() -> None:
    scores, labels, groups = scored()
    labels[groups == 0] = 0
    where = np.where(groups == 0, "a", "b")
    judge = evaluator(
        [scores], labels, ["mrr", "gauc", "brier", "calibration"], groups=groups, segments={"g": where}
    )
    found = {
        (one.segment, one.metric): one.loss for one in judge.by_segment(scores.numpy(), 1 - scores.numpy())
    }
    assert all(found["a", name] is None for name in ("mrr", "gauc", "calibration"))
    brier, mrr = found["a", "brier"], found["b", "mrr"]
    assert brier is not None and brier.few and mrr is not None
    rows = where == "b"
    expected = loss_of("mrr", *(x.numpy()[rows] for x in (labels, scores, 1 - scores, groups)))
    assert (mrr.value, mrr.groups) == pytest.approx((expected.value, expected.groups))


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


@pytest.mark.parametrize("batches", [1, 4])
def test_a_split_has_earlier_rows_on_one_side_and_later_on_the_other(batches: int) -> None:
    scores, labels, _ = scored()
    judge = evaluator(scores.split(400 // batches), labels, segments={"half": ["x"] * 200 + ["y"] * 200})
    search, final = judge.split(0.25)
    assert search.rows is not None and final.rows is not None
    assert search.rows.tolist() == [*range(100)] and final.rows.tolist() == [*range(100, 400)]
    assert (search.labels == labels[:100].numpy()).all() and (final.labels == labels[100:].numpy()).all()
    model = Counted()
    assert search.scores(model) == pytest.approx(scores[:100].numpy())
    assert model.calls == batches  # it was not known how many rows a batch has
    assert final.scores(model) == pytest.approx(scores[100:].numpy())
    assert model.calls == (2 if batches == 1 else 7)
    assert search(model)["auc"] == loss_of("auc", *(x[:100].numpy() for x in (labels, scores, scores))).before
    assert [(one.name, len(one.rows)) for one in search.segments] == [("x", 100)]
    assert [(one.name, one.rows[0], len(one.rows)) for one in final.segments] == [
        ("x", 0, 100),
        ("y", 100, 200),
    ]
    again, _ = final.split()
    assert again.rows is not None and again.rows.tolist() == [*range(100, 250)]
    assert again.scores(model) == pytest.approx(scores[100:250].numpy())


@given(st.integers(0, 1000), st.floats(0.1, 0.9))
def test_no_group_is_on_both_sides_of_a_split(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 12, 40)))
    labels = np.arange(len(groups)) % 2
    first, second = evaluator([torch.zeros(len(groups))], labels, groups=groups).split(share)
    assert first.rows is not None and second.rows is not None
    assert sorted([*first.rows, *second.rows]) == [*range(len(groups))]
    left, right = set(groups[first.rows]), set(groups[second.rows])
    assert not left & right
    # Groups of the first side come first, and have about their share of rows.
    begins = {group: int(np.flatnonzero(groups == group)[0]) for group in left | right}
    assert max(begins[group] for group in left) < min(begins[group] for group in right)
    assert abs(len(first.rows) - share * len(groups)) <= 6


def test_a_split_that_leaves_a_side_without_labels_of_a_kind_says_so() -> None:
    scores = torch.rand(100)
    for labels, side, words in (
        ([1] + [0] * 99, "second", "50 rows, 0 of them"),
        ([1] * 50 + [0, 1] * 25, "first", "50 rows, 50 of them"),
    ):
        with pytest.raises(MeasurementError, match=f"the {side} side of the split has {words}"):
            evaluator([scores], labels).split()
    with pytest.raises(MeasurementError, match="second side of the split has 0 rows"):
        evaluator([scores], [0, 1] * 50, groups=[1] * 100).split(0.7)
    for share in (0, 1, 1.5, math.nan, True, "half"):
        with pytest.raises(MeasurementError, match=r"share is .*between 0 and 1"):
            evaluator([scores], [0, 1] * 50).split(share)  # type: ignore[arg-type]


def test_metrics_of_lists_certify_and_refuse_what_compress_makes() -> None:
    torch.manual_seed(0)
    users, items = nn.Embedding(200, 16), nn.Embedding(300, 16)

    class Scorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = users, items

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return torch.sigmoid((self.users(user) * self.items(item)).sum(1))

    user, item = torch.arange(400).repeat_interleave(10) % 200, torch.randint(300, (4000,))
    model = Scorer().eval()
    labels = torch.bernoulli(model(user, item).detach())
    judge = evaluator(
        [(user, item)], labels, ["ndcg@5", "brier", "ece"], groups=torch.arange(400).repeat_interleave(10)
    )
    search, final = judge.split()
    for budget, served in (({"ndcg@5": 0.02, "brier": 0.001}, True), ({"ndcg@5": 0.001}, False)):
        fast = compress(
            model, (user[:64], item[:64]), recipe=[Fuse(), QuantizeTables(4, least_bytes=0)], evaluate=search,
            budget=Budget(budget), backends=[Eager()], batch_sizes=(1,), seconds=1, progress=False,
        )  # fmt: skip
        assert any(step.changes and not step.exact for step in fast.report.steps) == served
    assert final(model)["ece"] < 0.1 and set(final(fast)) == {"ndcg@5", "brier", "ece"}
