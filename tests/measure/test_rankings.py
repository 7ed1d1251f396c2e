"""Metrics of lists are those of scikit-learn and of the mean over all orders of ties."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from fastrec.errors import MeasurementError
from fastrec.measure.loss import loss_of
from fastrec.measure.rankings import Lists, hit, mrr, ndcg, recall

from .drawn import drawn


def lists(seed: int, count: int = 8, most: int = 7, levels: int = 4, graded: bool = False) -> tuple:
    """Groups out of order, of 1 to `most` rows, with scores of few levels, so with ties."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(count), rng.integers(1, most + 1, count))
    rng.shuffle(groups)
    labels = rng.integers(0, 4 if graded else 2, len(groups)).astype(float)
    return groups, labels, rng.integers(0, levels, len(groups)) / levels


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 40))
def test_ndcg_is_that_of_scikit_learn(seed: int, k: int, levels: int) -> None:
    groups, labels, scores = lists(seed, levels=levels, graded=True)
    found = ndcg(Lists.of(groups, scores, labels), k)
    for group in np.unique(groups):
        rows = groups == group
        if rows.sum() > 1:
            assert found[group] == pytest.approx(ndcg_score(labels[rows][None], scores[rows][None], k=k), abs=1e-12)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5))
def test_ties_count_as_the_mean_over_all_their_orders(seed: int, k: int, levels: int) -> None:
    groups, labels, scores = lists(seed, count=4, most=5, levels=levels)
    made = Lists.of(groups, scores, labels)
    found = recall(made, k), hit(made, k), mrr(made)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        if not labels[rows].any():
            continue
        each = []
        for order in permutations(range(len(rows))):
            if (np.diff(scores[rows][list(order)]) > 0).any():
                continue
            ranked = labels[rows][list(order)] > 0
            each.append((ranked[:k].sum() / ranked.sum(), ranked[:k].any(), 1 / (1 + ranked.argmax())))
        for ours, expected in zip(found, np.mean(each, axis=0), strict=True):
            assert ours[group] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_gauc_is_the_weighted_mean_of_the_auc_of_groups_with_both_labels(seed: int, levels: int) -> None:
    groups, labels, scores = lists(seed, most=12, levels=levels)
    each, weights = [], []
    for group in np.unique(groups):
        rows = groups == group
        if 0 < labels[rows].sum() < rows.sum():
            each.append(roc_auc_score(labels[rows], scores[rows]))
            weights.append(rows.sum())
    if not each:
        with pytest.raises(MeasurementError, match="gauc: none of 8 groups has rows of both labels"):
            loss_of("gauc", labels, scores, scores, groups)
        return
    loss = loss_of("gauc", labels, scores, scores, groups)
    assert loss.before == pytest.approx(np.average(each, weights=weights), abs=1e-12)
    assert (loss.groups, loss.left_out, loss.rarest) == (len(each), 8 - len(each), len(each))


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("ndcg@1", 0.25), ("recall@2", 0.5), ("hit@1", 0.25), ("mrr", (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)],
)
def test_constant_scores_are_worth_what_chance_is_wherever_the_relevant_row_stands(
    metric: str, expected: float
) -> None:
    labels = np.tile([1.0, 0.0, 0.0, 0.0], 50)
    groups = np.arange(200) // 4
    for given_labels in (labels, labels[::-1]):
        loss = loss_of(metric, given_labels, np.zeros(200), np.ones(200), groups)
        assert loss.before == loss.after == pytest.approx(expected)


def test_lists_with_nothing_relevant_are_left_out_and_counted() -> None:
    labels, scores = np.array([0, 0, 2, 0, 1, 1.0]), np.array([3, 2, 1, 4, 2, 1.0])
    loss = loss_of("mrr", labels, scores, scores, np.array(["a", "a", "b", "b", "c", "c"]))
    assert (loss.before, loss.groups, loss.left_out) == (0.75, 2, 1)
    with pytest.raises(MeasurementError, match=r"hit@3: none of 2 groups has a relevant row"):
        loss_of("hit@3", labels[:2] * 0, scores[:2], scores[:2], np.arange(2))


def test_one_group_certifies_nothing() -> None:
    groups, labels, before, _ = drawn(1, 4000)
    for metric in ("auc", "gauc", "logloss", "ndcg@10", "mrr"):
        loss = loss_of(metric, labels, before, before, groups)
        assert loss.verdict(1.0) == "not certifiable" and loss.needed(1.0) == 400_000


def test_of_few_lists_that_changed_no_spread_is_believed() -> None:
    groups, labels = np.arange(4000) // 10, np.tile(np.eye(10)[0], 400)
    before = np.tile(np.arange(10.0), 400)
    same = loss_of("hit@5", labels, before, before, groups)
    assert same.upper == 0.0 and same.verdict(0.0) == "certified"
    # Other scores in the same order: none of 400 lists lost its hit, so up to 3 of 400 would.
    unseen = loss_of("hit@5", labels, before, before * 2, groups)
    assert unseen.value == 0.0 and unseen.upper == pytest.approx(2.996 / 400, rel=1e-3)
    assert unseen.verdict(5e-3) == "not certifiable" and unseen.verdict(8e-3) == "certified"
    assert unseen.needed(1e-3) == pytest.approx(2996 * 10, abs=10)  # a bound of 3 / lists, of ten rows each
    after = before.copy()
    after[:10:9] = after[:10:9][::-1]  # one list gains all
    one = loss_of("hit@5", labels, before, after, groups)
    assert one.value == -1 / 400 and one.upper == pytest.approx((4.744 - 1 - 1) / 400, rel=1e-3)
