"""What a guard knows <-> plain data: the range of every id, which features must be finite, and what is promised of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from ..errors import UnsafeArtifactError
from ..guards import Bounds, Guard
from ..inputs import Feature

__all__ = ["guard_data", "guard_of"]


def guard_data(guard: Guard) -> dict[str, Any]:
    """The guard as data that JSON holds, but for the graph of the ids that the model computes."""
    names = [feature.name for feature in guard.features]
    return {
        "bounds": [None if bound is None else _bounds_data(bound) for bound in guard.bounds],
        "finite": list(guard.finite),
        "sizes": [list(ends) for ends in guard.sizes],
        "promised": {names[index]: [low, high] for index, low, high in guard.promised},
    }


def guard_of(data: Any, features: tuple[Feature, ...], computed: fx.GraphModule | None, where: str) -> Guard:
    """The guard of such data. Raises `UnsafeArtifactError` where it is none."""
    try:
        names = [feature.name for feature in features]
        bounds = [None if bound is None else _bounds(bound) for bound in data["bounds"]]
        checked = {int(index) for index in data["finite"]}
        sizes = [(int(low), int(high)) for low, high in data["sizes"]]
        promised = {name: (float(low), float(high)) for name, (low, high) in data["promised"].items()}
        if set(data) != {"bounds", "finite", "sizes", "promised"} or len(bounds) != len(features):
            raise ValueError("a range for each feature is expected")
        if not set(promised) <= set(names) or not checked <= set(range(len(features))):
            raise ValueError("it speaks of features that there are not")
        for feature, bound in zip(features, bounds, strict=True):
            if bound is not None:
                np.broadcast_shapes(bound.high.shape, bound.low.shape)
                if bound.low.ndim != len(feature.shape):
                    raise ValueError(f"the range of {feature.name!r} has another number of dimensions")
        finite = [index in checked for index in range(len(features))]
        return Guard(features, bounds, finite, computed, sizes, promised)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise UnsafeArtifactError(f"{where}: not what a guard knows: {error}") from error


def _bounds_data(bound: Bounds) -> dict[str, Any]:
    def listed(array: Any) -> Any:
        if isinstance(array, list):
            return [listed(item) for item in array]
        return None if np.isinf(array) else int(array)

    return {"low": listed(bound.low.tolist()), "high": listed(bound.high.tolist())}


def _bounds(data: Any) -> Bounds:
    def numbers(value: Any, none: float) -> Any:
        return (
            [numbers(item, none) for item in value]
            if isinstance(value, list)
            else none
            if value is None
            else int(value)
        )

    low, high = numbers(data["low"], -np.inf), numbers(data["high"], np.inf)
    return Bounds(np.array(low, dtype=np.float64), np.array(high, dtype=np.float64))
