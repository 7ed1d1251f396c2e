"""The transforms of stored features as steps of a scikit-learn pipeline. Importing this module imports scikit-learn."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..packages import package
from ..transforms import DctTransform, PcaTransform

__all__ = ["DctTransformer", "PcaTransformer"]

_base, _validation = (
    package(name, "sklearn", "integrations.sklearn") for name in ("sklearn.base", "sklearn.utils.validation")
)
_Named: Any = _base.ClassNamePrefixFeaturesOutMixin
_Mixin: Any = _base.TransformerMixin
_Estimator: Any = _base.BaseEstimator
_FLOATS = [np.float64, np.float32]


class _Transformer(_Named, _Mixin, _Estimator):  # type: ignore[misc]  # scikit-learn is untyped
    """What both have in common: `transform_` is the transform of fastrec that was fitted, to be saved or rebased."""

    transform_: Any

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _rows(self, x: Any, *, reset: bool) -> NDArray[Any]:
        """What scikit-learn takes, as an array (n, features)."""
        rows: NDArray[Any] = _validation.validate_data(self, x, reset=reset, dtype=_FLOATS)
        return rows

    def _kept(self, z: Any) -> NDArray[Any]:
        """What `transform` gave, as an array."""
        _validation.check_is_fitted(self)
        kept: NDArray[Any] = _validation.check_array(z, dtype=_FLOATS)
        return kept


class PcaTransformer(_Transformer):
    """`PcaTransform` as scikit-learn has its steps: x (n, d) in its `rank` principal components, or those that hold `energy`.

    `sample_weight` is how often each row occurs. Raises `InputError` for settings that do not fit, when it is fitted. Cost: n d^2.

    Example:
        >>> x = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]])
        >>> step = PcaTransformer(rank=1).fit(x)
        >>> np.allclose(step.inverse_transform(step.transform(x)), x), step.get_feature_names_out().tolist()
        (True, ['pcatransformer0'])
    """

    def __init__(self, *, rank: int | None = None, energy: float | None = None) -> None:
        self.rank = rank
        self.energy = energy

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Find the components of rows X (n, d); y is not looked at."""
        rows = self._rows(X, reset=True)
        if sample_weight is not None:
            sample_weight = np.asarray(sample_weight)
        self.transform_ = PcaTransform(rank=self.rank, energy=self.energy).fit(rows, sample_weight)
        self._n_features_out = len(self.transform_.components_)
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """The components (n, rank)."""
        _validation.check_is_fitted(self)
        z: NDArray[Any] = self.transform_.transform(self._rows(X, reset=False))
        return z

    def inverse_transform(self, X: Any) -> NDArray[Any]:
        """The rows (n, d) that components stand for."""
        x: NDArray[Any] = self.transform_.inverse_transform(self._kept(X))
        return x


class DctTransformer(_Transformer):
    """`DctTransform` as scikit-learn has its steps: each row of x (n, T width) is a history of T events of `width` numbers, oldest first.

    Of it come the `coefficients` low frequencies of the older events and then the `recent` newest ones, (n, rows width). Raises
    `InputError` for settings that do not fit, when it is fitted. Cost: n T log T.

    Example:
        >>> x = np.arange(20.0).reshape(2, 10)
        >>> step = DctTransformer(recent=2, coefficients=3).fit(x)
        >>> step.transform(x).shape, step.transform(x)[:, 3:].tolist()
        ((2, 5), [[8.0, 9.0], [18.0, 19.0]])
    """

    def __init__(self, *, recent: int, coefficients: int, width: int = 1) -> None:
        self.recent = recent
        self.coefficients = coefficients
        self.width = width

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn the length of the histories; y is not looked at."""
        columns = self._rows(X, reset=True).shape[1]
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise InputError(f"DctTransformer(width=...) takes a whole number from 1, got {self.width!r:.80}")
        if columns % self.width:
            raise InputError(
                f"x has {columns} columns, which are no whole number of events of width={self.width}"
            )
        self.transform_ = DctTransform(recent=self.recent, coefficients=self.coefficients)
        self._n_features_out = self.transform_.rows(columns // self.width) * self.width
        return self

    def transform(self, X: Any) -> NDArray[Any]:
        """What is kept (n, rows width) of histories (n, T width)."""
        _validation.check_is_fitted(self)
        rows = self._rows(X, reset=False)
        z: NDArray[Any] = self.transform_.transform(rows.reshape(len(rows), -1, self.width))
        return z.reshape(len(rows), -1)

    def inverse_transform(self, X: Any) -> NDArray[Any]:
        """The histories (n, T width) that come nearest to what is kept of them."""
        kept = self._kept(X)
        if kept.shape[1] != self._n_features_out:
            raise InputError(f"z has {kept.shape[1]} columns, {self._n_features_out} are kept of a history")
        length = self.n_features_in_ // self.width
        x: NDArray[Any] = self.transform_.inverse_transform(
            kept.reshape(len(kept), -1, self.width), length=length
        )
        return x.reshape(len(kept), -1)
