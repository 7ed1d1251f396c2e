"""Errors are those of resampling groups; bounds cover what is true as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from fastrec.measure.loss import Loss, loss_of
from fastrec.measure.paired import lots, mean_change, rare, resampled, summed

from .drawn import Drawn, drawn


@pytest.mark.parametrize("metric", ["auc", "gauc", "logloss", "ndcg@5"])
def test_errors_are_those_of_resampling_whole_groups(metric: str) -> None:
    data = drawn(200, 8, 3)
    rng, found = np.random.default_rng(1), []
    rows = np.arange(len(data.labels)).reshape(200, 8)
    for _ in range(200):
        chosen = rows[rng.integers(0, 200, 200)].ravel()
        named = np.repeat(np.arange(200), 8)
        found.append(
            loss_of(metric, data.labels[chosen], data.before[chosen], data.after[chosen], named).value
        )
    loss = loss_of(metric, data.labels, data.before, data.after, data.groups)
    assert loss.error == pytest.approx(np.std(found), rel=0.14)


def test_where_every_row_is_its_own_group_errors_are_those_without_groups() -> None:
    _, labels, before, after = drawn(100, 20)
    for metric in ("auc", "logloss", "brier", "ece", "calibration"):
        alone = loss_of(metric, labels, before, after, np.arange(len(labels)))
        plain = loss_of(metric, labels, before, after)
        assert (alone.error, alone.upper) == pytest.approx((plain.error, plain.upper)), metric
        assert (alone.rarest, plain.groups) == (plain.rarest, None)


def test_rows_that_are_copies_are_no_more_rows() -> None:
    _, labels, before, after = drawn(100, 20)
    copied = [np.repeat(x, 4) for x in (labels, before, after, np.arange(len(labels)))]
    for metric in ("auc", "logloss", "brier"):
        once, twice = loss_of(metric, labels, before, after), loss_of(metric, *copied)
        assert once.error is not None and twice.error == pytest.approx(once.error, rel=0.05)
        assert loss_of(metric, *copied[:3]).error == pytest.approx(once.error / 2, rel=0.1)


def test_the_error_of_a_mean() -> None:
    change = np.random.default_rng(0).normal(size=50)
    value, error = mean_change(change)
    assert (value, error) == pytest.approx((change.mean(), change.std(ddof=1) / np.sqrt(50)))
    assert mean_change(np.array([3.0])) == (3.0, 0.0)
    weights, groups = np.arange(1.0, 51), np.arange(50) // 5
    drawings = resampled(np.stack([summed(change * weights, groups), summed(weights, groups)], axis=1))
    value, error = mean_change(change, weights, groups)
    assert value == pytest.approx(np.average(change, weights=weights))
    assert error == pytest.approx((drawings[:, 0] / drawings[:, 1]).std(), rel=0.15)


def test_resamples_are_seeded_and_lots_stand_for_what_is_in_them() -> None:
    sums = np.random.default_rng(0).normal(size=(9000, 2))
    lot = lots(None, 9000)
    assert len(np.unique(lot)) == 2000 and np.ptp(np.bincount(lot)) == 1
    found = resampled(summed(sums, lot))
    assert found.shape == (1000, 2) and (found == resampled(summed(sums, lot))).all()
    assert found.std(axis=0) == pytest.approx(sums.std(axis=0) * np.sqrt(9000), rel=0.08)
    groups = np.arange(9000) // 3
    assert (lots(groups, 9000).reshape(-1, 3) == lots(None, 3000)[:, None]).all()
    assert (lots(groups[:300], 300) == groups[:300]).all()


def test_of_few_changes_the_number_counts() -> None:
    weights = np.ones(1000)
    change = np.zeros(1000)
    assert rare(change, weights, 0.0) == pytest.approx((2.996e-3, 2.996e-3), rel=1e-3)
    change[:3] = 1e-3
    assert rare(change, weights, 1e-6) == pytest.approx((4.754e-3, 4.754e-3), rel=1e-3)
    change[:10] = 1e-3
    assert rare(change, weights, 1e-6) is None
    # Half the weight in one: as good as four units.
    heavy = np.append(np.ones(999), 999.0)
    found = rare(np.zeros(1000), heavy, 0.0)
    assert found is not None and found[1] == pytest.approx(2.996 / 4, rel=0.01)


def test_bounds_of_quantiles_make_verdicts_chances_and_needs() -> None:
    loss = Loss("ece", 0.01, 0.02, 0.01, 1e-3, 10_000, 3000, (0.002, 0.005))
    assert (loss.lower, loss.upper) == pytest.approx((0.008, 0.015))
    assert [loss.verdict(allowed) for allowed in (0.007, 0.012, 0.016)] == [
        "exceeded",
        "not certifiable",
        "certified",
    ]
    assert loss.chance(0.008) == pytest.approx(0.05, rel=1e-3)
    assert loss.needed(0.0125) == 40_000


# Metric, how rows are drawn, and how often the bound may cover at most: those of calibration cover more where signs are unknown.
COVERED = [
    ("auc", {}, 0.99),
    ("gauc", {}, 0.99),
    ("logloss", {}, 0.99),
    ("ndcg@5", {}, 0.99),
    ("ece", {}, 1.0),
    ("calibration", {"shift": 0.02}, 1.0),
    ("calibration", {"off": 0.5, "shift": 0.1}, 0.99),
]


@pytest.fixture(scope="module")
def everything() -> dict[str, tuple[Drawn, list[Drawn]]]:
    made: dict[str, tuple[Drawn, list[Drawn]]] = {}
    for _, how, _ in COVERED:
        if str(how) not in made:
            made[str(how)] = (
                drawn(20_000, 20, 10**6, **how),
                [drawn(150, 20, seed, **how) for seed in range(200)],
            )
    return made


@pytest.mark.parametrize(("metric", "how", "most"), COVERED, ids=lambda x: str(x))
def test_the_bound_covers_what_is_true_in_19_of_20_samples(
    everything: dict, metric: str, how: dict, most: float
) -> None:
    many, samples = everything[str(how)]
    true = loss_of(metric, many.labels, many.before, many.after, many.groups).value
    covered = []
    for one in samples:
        loss = loss_of(metric, one.labels, one.before, one.after, one.groups)
        covered.append(loss.upper is not None and loss.upper >= true)
    # 0.95 within 2.6 standard errors of 200 samples.
    assert 0.91 <= np.mean(covered) <= most
