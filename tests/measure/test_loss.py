"""Losses are those of scikit-learn, their errors those of resampling, their verdicts one-sided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from fastrec.errors import MeasurementError
from fastrec.measure.loss import Loss, loss_of


def rows(count: int, seed: int = 0, noise: float = 0.02) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(count) < 0.3).astype(float)
    labels[:2] = 0, 1
    logits = rng.normal(labels, 1.0)
    before = 1 / (1 + np.exp(-logits))
    after = 1 / (1 + np.exp(-logits - noise * rng.normal(size=count)))
    return labels, before, after


@given(st.integers(4, 300), st.integers(0, 1000), st.integers(1, 3))
def test_metrics_are_those_of_scikit_learn(count: int, seed: int, decimals: int) -> None:
    labels, before, after = rows(count, seed)
    before, after = before.round(decimals), after.round(decimals)  # ties too
    auc = loss_of("auc", labels, before, after)
    assert auc.before == pytest.approx(roc_auc_score(labels, before), abs=1e-12)
    assert auc.after == pytest.approx(roc_auc_score(labels, after), abs=1e-12)
    assert auc.value == pytest.approx(auc.before - auc.after, abs=1e-12)
    clipped = np.clip(before, 1e-7, 1 - 1e-7)
    assert loss_of("logloss", labels, before, after).before == pytest.approx(
        log_loss(labels, clipped), abs=1e-6
    )


@pytest.mark.parametrize("metric", ["auc", "logloss"])
def test_errors_are_those_of_resampling(metric: str) -> None:
    labels, before, after = rows(2000, noise=0.3)
    rng = np.random.default_rng(1)
    values = []
    for _ in range(400):
        chosen = rng.integers(0, len(labels), len(labels))
        values.append(loss_of(metric, labels[chosen], before[chosen], after[chosen]).value)
    assert loss_of(metric, labels, before, after).error == pytest.approx(np.std(values), rel=0.15)


def test_equal_scores_lose_nothing_for_certain() -> None:
    labels, before, _ = rows(1000)
    loss = loss_of("auc", labels, before, before)
    assert (loss.value, loss.error, loss.verdict(0.0)) == (0.0, 0.0, "certified")


def test_few_rows_certify_nothing() -> None:
    labels, before, _ = rows(100)
    loss = loss_of("auc", labels, before, before)
    assert loss.verdict(0.1) == "not certifiable"
    needed = loss.needed(0.1)
    assert needed is not None and 100 < needed < 1000


def test_verdicts_are_of_the_bound() -> None:
    loss = Loss("auc", 0.8, 0.7999, 1e-4, 1e-4, 10_000, 3000)
    assert loss.upper == pytest.approx(2.645e-4, rel=1e-3)
    assert loss.verdict(3e-4) == "certified"
    assert loss.verdict(2e-4) == "not certifiable" and loss.needed(2e-4) == 27_057
    assert loss.verdict(0.5e-4) == "not certifiable" and loss.needed(0.5e-4) is None
    assert Loss("auc", 0.8, 0.79, 1e-2, 1e-4, 10_000, 3000).verdict(2e-4) == "exceeded"
    assert Loss("auc", 0.8, 0.8, 0.0, None, 10_000, 3000).verdict(1.0) == "not certifiable"


@pytest.mark.parametrize(
    ("metric", "labels", "before", "words"),
    [
        ("ndcg", [0, 1], [0.1, 0.2], "unknown metric 'ndcg'"),
        ("auc", [1, 1], [0.1, 0.2], "all 2 labels are alike"),
        ("auc", [0, 1], [0.1, np.nan], "not finite"),
        ("auc", [0, 1, 1], [0.1, 0.2], "3 labels, 2 scores before"),
    ],
)
def test_what_cannot_be_judged_says_so(metric: str, labels: list, before: list, words: str) -> None:
    with pytest.raises(MeasurementError, match=words):
        loss_of(metric, np.array(labels), np.array(before), np.array(before))
