"""Every metric has its direction, says what it takes, and is that of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from fastrec.errors import MeasurementError
from fastrec.measure.loss import loss_of
from fastrec.measure.metrics import LOWER_IS_BETTER, METRICS, metric_named, metrics_named

from .drawn import drawn

NAMES = ["auc", "gauc", "logloss", "brier", "ece", "calibration", "ndcg@5", "recall@5", "hit@5", "mrr"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_pointwise_metrics_are_those_of_scikit_learn(seed: int, decimals: int) -> None:
    groups, labels, before, after = drawn(10, 30, seed)
    labels[:2] = 0, 1
    before = before.round(decimals)
    for name, function in (("auc", roc_auc_score), ("brier", brier_score_loss)):
        for of in (None, groups):
            assert loss_of(name, labels, before, after, of).before == pytest.approx(function(labels, before), abs=1e-12)  # fmt: skip
    clipped = np.clip(before, 1e-7, 1 - 1e-7)
    assert loss_of("logloss", labels, before, after, groups).before == pytest.approx(log_loss(labels, clipped), abs=1e-6)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_is_better_before_is_a_loss_and_gains_are_not(name: str) -> None:
    groups, labels, before, _ = drawn()
    worse = np.clip(0.5 - 0.8 * (before - 0.5), 0, 1)  # in the opposite order, and far from what happens
    lost, gained = loss_of(name, labels, before, worse, groups), loss_of(name, labels, worse, before, groups)
    assert lost.value > 0.01 and lost.value == pytest.approx(-gained.value)
    assert (lost.before, lost.after) == (gained.after, gained.before)
    assert lost.verdict(0.01) == "exceeded" and gained.verdict(0.0) == "certified"
    assert (name in LOWER_IS_BETTER) == (metric_named(name).better == "lower") == (lost.after > lost.before)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_rows_and_the_names_of_groups_are_nothing(name: str) -> None:
    groups, labels, before, after = drawn(120, 10)
    loss = loss_of(name, labels, before, after, groups)
    order = np.random.default_rng(0).permutation(len(labels))
    again = loss_of(
        name, labels[order], before[order], after[order], np.array([f"u{g:03}" for g in groups])[order]
    )
    assert (again.before, again.after, again.upper) == pytest.approx((loss.before, loss.after, loss.upper))
    assert (again.rarest, again.groups, again.left_out) == (loss.rarest, loss.groups, loss.left_out)


@pytest.mark.parametrize("name", ["logloss", "brier", "ece", "calibration"])
def test_what_takes_probabilities_names_the_range_it_got(name: str) -> None:
    labels, good, logits = np.array([0, 1.0, 1]), np.array([0.2, 1.0, 1 + 1e-9]), np.array([-1.5, 2.25, 0.5])
    assert loss_of(name, labels, good, good).value == 0
    for before, after in ((logits, good), (good, logits)):
        with pytest.raises(
            MeasurementError, match=rf"{name} takes probabilities.*-1\.5 and 2\.25.*output=.*sigmoid"
        ):
            loss_of(name, labels, before, after)


def test_names_are_read_and_unknown_ones_told() -> None:
    assert [one.name for one in metrics_named(["auc", "ndcg@3", "hit@100"])] == ["auc", "ndcg@3", "hit@100"]
    assert metric_named("recall@7").lists and metric_named("recall@7").graded
    for wrong in ("ndcg", "ndcg@0", "ndcg@K", "ndcg@-1", "auc@5", "mrr@", "AUC", 3):
        with pytest.raises(MeasurementError, match="unknown metrics"):
            metrics_named(["auc", wrong])  # type: ignore[list-item]
    with pytest.raises(MeasurementError, match=r"known are auc, .*ndcg@K.*mrr"):
        metrics_named([])
    assert {one.better for one in METRICS.values()} == {"higher", "lower"}


@pytest.mark.parametrize(
    ("metric", "labels", "groups", "words"),
    [
        ("mrr", [0, 1], None, r"mrr: it is a mean over groups: give evaluator\(groups="),
        ("calibration", [0, 0], None, "calibration: no label is 1"),
        ("gauc", [0, 1], [0, 1], "gauc: none of 2 groups has rows of both labels"),
        ("auc", [], None, "auc: there are no rows"),
        ("auc", [0, 1], [0], "1 groups for 2 labels"),
    ],
)
def test_what_cannot_be_measured_says_so(metric: str, labels: list, groups: list | None, words: str) -> None:
    scores = np.linspace(0, 1, len(labels))
    with pytest.raises(MeasurementError, match=words):
        loss_of(metric, np.array(labels), scores, scores, None if groups is None else np.array(groups))


@pytest.mark.parametrize("name", NAMES)
def test_constant_scores_are_worth_what_says_nothing(name: str) -> None:
    groups, labels, before, _ = drawn()
    mean = np.full(len(labels), labels.mean())
    loss = loss_of(name, labels, before, mean, groups)
    if name in ("auc", "gauc"):
        assert loss.after == 0.5
    if name in ("ece", "calibration"):
        assert loss.after == pytest.approx(0, abs=1e-12)
    if name == "brier":
        assert loss.after == pytest.approx(labels.mean() * (1 - labels.mean()))
    assert loss.upper is not None and np.isfinite(loss.upper) and loss.upper >= loss.value
