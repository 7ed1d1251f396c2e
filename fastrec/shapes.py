"""Which sizes a flat tensor may have beside the example's, and the errors for others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .errors import IdOutOfRangeError, InputError
from .inputs import Feature
from .wording import count

__all__ = ["fits", "misfit", "refusal"]

_LOOKUP = "index out of range in self"
"""What torch says of a lookup by an id that the table does not have."""


def fits(feature: Feature, tensor: Tensor, rows: int | None) -> bool:
    """Whether a tensor has the sizes of the example, but for the dimension that grows.

    Where that counts rows there are `rows` of them (None: any number), or of a whole feature of the request one; what
    offsets or lengths cut has any size there.
    """
    sizes, axis = list(feature.shape), feature.growing
    if axis is not None and tensor.ndim == len(sizes):
        given = tensor.shape[axis]
        one = feature.role != "rows" or (feature.request is True and given == 1)
        sizes[axis] = given if rows is None or one else rows
    return list(tensor.shape) == sizes


def misfit(feature: Feature, tensor: Tensor, more: str = "") -> InputError:
    """The error for a tensor of other sizes; `more` goes behind what was got and expected."""
    return InputError(f"feature {_sizes(feature, tensor)}{more}", feature=feature.name)


def refusal(features: Sequence[Feature], flat: Sequence[Tensor], error: Exception) -> InputError:
    """The error for a batch that a model does not take, with what it says: which features are of other sizes, or that an id is bad."""
    odd = [(f, t) for f, t in zip(features, flat, strict=True) if not fits(f, t, None)]
    what = ", ".join(_columns(f, t) or _sizes(f, t) for f, t in odd)
    sizes = ", ".join(f"{f.name!r} {tuple(t.shape)}" for f, t in zip(features, flat, strict=True))
    if _LOOKUP in str(error) and all(feature.growing is None for feature, _ in odd):
        # Sizes that nothing counts may be any: what is bad is an id, and torch does not say which.
        return IdOutOfRangeError(
            f"an id is outside of the table that it is looked up in. The features are {sizes}; the model says: {type(error).__name__}: {error}"
        )
    return InputError(
        f"the model does not take this batch: {what or 'sizes do not agree: ' + sizes}. "
        f"It says: {type(error).__name__}: {error}",
        feature=odd[0][0].name if odd else "",
    )


def _columns(feature: Feature, tensor: Tensor) -> str:
    """What is said of a matrix, a row for each candidate, that has too few or too many columns; nothing of others."""
    if feature.growing != 0 or not len(feature.shape) == tensor.ndim == 2:
        return ""
    return f"{feature.name!r} has {count(tensor.shape[1], 'column')}, expected {feature.shape[1]:,} as in the example"


def _sizes(feature: Feature, tensor: Tensor) -> str:
    return f"{feature.name!r} is {tuple(tensor.shape)}, in the example it was {feature.shape}"
