"""Transforms as steps of scikit-learn."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastrec.errors import InputError
from fastrec.integrations.sklearn import DctTransformer, PcaTransformer
from fastrec.transforms import DctTransform, PcaTransform

X = np.random.default_rng(0).normal(size=(40, 12)) @ np.random.default_rng(1).normal(size=(12, 12))


@parametrize_with_checks(
    [PcaTransformer(rank=1), PcaTransformer(energy=0.9), DctTransformer(recent=1, coefficients=2)]
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_components_are_those_of_the_transform() -> None:
    weights = np.arange(40) % 3
    step, plain = PcaTransformer(rank=4).fit(X, None, weights), PcaTransform(rank=4).fit(X, weights)
    np.testing.assert_array_equal(step.transform(X), plain.transform(X))
    z = plain.transform(X)
    np.testing.assert_array_equal(step.inverse_transform(z), plain.inverse_transform(z))


def test_targets_are_not_taken_for_weights() -> None:
    y = np.arange(40.0)
    made = make_pipeline(PcaTransformer(rank=4), LinearRegression()).fit(X, y)
    np.testing.assert_array_equal(made[0].transform(X), PcaTransform(rank=4).fit(X).transform(X))


@pytest.mark.parametrize("width", [1, 3])
def test_a_row_is_a_history(width: int) -> None:
    step, plain = (
        DctTransformer(recent=1, coefficients=2, width=width).fit(X),
        DctTransform(recent=1, coefficients=2),
    )
    events = X.reshape(40, -1, width)
    z = plain.transform(events)
    np.testing.assert_array_equal(step.transform(X), z.reshape(40, -1))
    back = plain.inverse_transform(z, length=events.shape[1]).reshape(40, -1)
    np.testing.assert_array_equal(step.inverse_transform(step.transform(X)), back)
    assert len(step.get_feature_names_out()) == z[0].size


def test_settings_are_searched_copied_and_pickled() -> None:
    pipeline = make_pipeline(
        ColumnTransformer([("pca", PcaTransformer(rank=1), slice(0, 6)), ("dct", DctTransformer(recent=1, coefficients=1), slice(6, 12))]),
        LinearRegression(),
    )  # fmt: skip
    y = X[:, :6].sum(1)
    ranks = {"columntransformer__pca__rank": [1, 6]}
    found = GridSearchCV(pipeline, ranks, cv=2).fit(X, y)
    assert found.best_params_ == {"columntransformer__pca__rank": 6}
    names = list(found.best_estimator_[0].get_feature_names_out())
    assert names == [f"pca__pcatransformer{i}" for i in range(6)] + [
        f"dct__dcttransformer{i}" for i in range(2)
    ]
    again = pickle.loads(pickle.dumps(found.best_estimator_))
    np.testing.assert_array_equal(again.predict(X), found.predict(X))
    assert clone(again)[0].transformers[0][1].get_params() == {"rank": 6, "energy": None}


def test_frames_come_out_where_they_are_asked_for() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    step = PcaTransformer(rank=2).set_output(transform="pandas")
    frame = step.fit_transform(pandas.DataFrame(X, columns=[f"x{i}" for i in range(12)]))
    assert list(frame.columns) == ["pcatransformer0", "pcatransformer1"] and len(frame) == 40


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (PcaTransformer(), "rank=... or energy"),
        (PcaTransformer(rank=13), "rank=13"),
        (DctTransformer(recent=-1, coefficients=2), "recent"),
        (DctTransformer(recent=1, coefficients=2, width=5), "12 columns"),
        (DctTransformer(recent=1, coefficients=2, width=0), "width"),
    ],
)
def test_settings_that_do_not_fit_are_refused(step: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        step.fit(X)


def test_what_was_kept_has_so_many_columns() -> None:
    with pytest.raises(InputError, match="z has 4 columns, 3"):
        DctTransformer(recent=1, coefficients=2).fit(X).inverse_transform(X[:, :4])


def test_components_without_a_number_of_them() -> None:
    with pytest.raises(
        InputError, match=r"give one of them, the number of components to keep, as rank=8, or the share"
    ):
        PcaTransformer().fit(np.zeros((4, 3)))
