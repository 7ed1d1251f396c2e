"""Calibration is that of its formulas, and bounds hold where nobody knows the sign of a gap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from fastrec.measure.loss import loss_of
from fastrec.measure.probabilities import BINS

from .drawn import drawn, sigmoid


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_ece_is_the_mean_gap_of_the_bins_of_scikit_learn(seed: int, decimals: int) -> None:
    _, labels, before, _ = drawn(24, 20, seed)
    before = before.round(decimals)
    found, said = calibration_curve(labels, before, n_bins=BINS, strategy="quantile")
    edges = np.percentile(before, np.linspace(0, 100, BINS + 1))
    bins = np.bincount(np.searchsorted(edges[1:-1], before), minlength=BINS)
    expected = (np.abs(found - said) * bins[bins > 0]).sum() / len(labels)
    assert loss_of("ece", labels, before, before).before == pytest.approx(expected, abs=1e-12)


def test_by_hand() -> None:
    # Two values, so two bins: 3 rows at 0.2 with one label 1, 5 at 0.8 with three.
    labels = np.array([1, 0, 0, 1, 1, 1, 0, 0])
    scores = np.repeat([0.2, 0.8], [3, 5])
    assert loss_of("ece", labels, scores, scores).before == pytest.approx((0.4 + 1.0) / 8)
    assert loss_of("calibration", labels, scores, scores).before == pytest.approx(4.6 / 4 - 1)
    assert loss_of("calibration", labels, scores / 2, scores / 2).before == pytest.approx(1 - 2.3 / 4)


def test_equal_scores_lose_nothing_and_rows_of_every_bin_are_needed() -> None:
    _, labels, before, _ = drawn(300, 20)
    loss = loss_of("ece", labels, before, before)
    assert (loss.value, loss.upper, loss.verdict(0.0)) == (0.0, 0.0, "certified")
    few = loss_of("ece", labels[:1400], before[:1400], before[:1400])
    assert few.verdict(0.1) == "not certifiable" and few.rarest == 93 and few.needed(0.1) == 1506


@pytest.mark.parametrize("metric", ["ece", "calibration"])
@pytest.mark.parametrize("shift", [-0.1, 0.1])
def test_what_moves_a_calibrated_model_is_never_certified_as_a_gain(metric: str, shift: float) -> None:
    # By chance half of the samples show a gain, where all predictions move by 7 % of their mean.
    logits = np.random.default_rng(99).normal(-1.5, 1, 100_000)
    moved = abs(sigmoid(logits + shift) - sigmoid(logits)).mean()
    true = moved if metric == "ece" else moved / sigmoid(logits).mean()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        logits = rng.normal(-1.5, 1, 4000)
        labels = rng.random(4000) < sigmoid(logits)
        loss = loss_of(metric, labels, sigmoid(logits), sigmoid(logits + shift))
        assert loss.upper is not None and loss.upper > 0.9 * true
        assert loss.verdict(true / 2) != "certified"


def test_a_clear_gap_that_shrinks_is_a_gain_for_certain() -> None:
    groups, labels, before, after = drawn(off=0.8, shift=-0.4, noise=0.01)
    for metric in ("ece", "calibration"):
        loss = loss_of(metric, labels, before, after, groups)
        assert loss.upper is not None and loss.upper < 0 and loss.verdict(0.0) == "certified"
    groups, labels, before, after = drawn(off=1.2, shift=-0.4, noise=0.01)
    for metric in ("ece", "calibration"):
        back = loss_of(metric, labels, after, before, groups)
        assert back.lower is not None and back.lower > 0 and back.verdict(0.0) == "exceeded"
        assert back.chance(0.0) < 0.05 < back.chance(back.value)
