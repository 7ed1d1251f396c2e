"""Which activations the codes of a layer stand for, and what the weights become.

The codes 0 to 255 of an activation stand for `(code - zero) * scale`, from `low` to `high`. A wide range rounds
coarsely, a narrow one cuts off what lies outside. Ranges tried: from the least to the largest value seen; between
percentiles; and the share of the first that brings the values themselves back with the least squared error. That whose
layer answers best is taken. Zero is always in the range, so that what is zero stays zero. Results of a convolution are
rounded as well: in the range, of these, that brings them back best.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ops.linears import CODES, centred

__all__ = [
    "BIAS",
    "Range",
    "best_output",
    "best_range",
    "code_bias",
    "code_weight",
    "least_scale",
    "ranges",
    "row_error",
]

BIAS = 2**30
"""The largest code of a bias: half of what 32 bits hold, the other half is for the sum of products."""

_PERCENTILES = (99.99, 99.9)
_SHARES = tuple(0.05 * k for k in range(6, 20))


@dataclass(frozen=True)
class Range:
    """A scale and a zero point, by which rule, and the relative error of the layer's output with them."""

    scale: float
    zero: int
    rule: str
    error: float = math.inf


def code_weight(weight: Tensor, least: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Weights (O, I) as int8 codes in [-127, 127], and a scale (O,) for each output channel, from `least` on.

    Example:
        >>> codes, scale = code_weight(torch.tensor([[1.27, -0.5], [0.0, 0.0]]))
        >>> codes.tolist(), scale.tolist()[1]
        ([[127, -50], [0, 0]], 1.0)
    """
    scale = (weight.abs().amax(1) / 127).maximum(torch.as_tensor(least, dtype=weight.dtype))
    # A row of nothing but zeros has codes of zero by any scale.
    scale = torch.where(scale >= torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    codes = (weight / scale[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def least_scale(bias: Tensor, x_scale: float) -> Tensor:
    """The least scale (O,) of weights with which codes of this bias (O,) fit: it counts where weights are next to nothing."""
    return bias.abs() / (x_scale * BIAS)


def code_bias(bias: Tensor, weight_scale: Tensor, x_scale: float) -> Tensor:
    """A bias (O,) as int32 in units of the sums of codes: round(bias / (x_scale weight_scale))."""
    codes = bias.double() / (weight_scale.double() * x_scale)
    return codes.round_().clamp_(-BIAS, BIAS).to(torch.int32)


def ranges(x: Tensor) -> tuple[Range, ...]:
    """The ranges worth trying for the rows x (n, I), their errors not known; none where x is all zero.

    Cost: some passes over x. All layers that read x choose among the same.
    """
    tried: dict[tuple[float, int], Range] = {}
    for low, high, rule in _candidates(x):
        made = _range(low, high, rule)
        if made is not None:
            tried.setdefault((made.scale, made.zero), made)
    return tuple(tried.values())


def best_range(
    x: Tensor, weight: Tensor, groups: int = 1, tried: Iterable[Range] | None = None
) -> Range | None:
    """The range by which the layer `weight` (O, I) answers best on the rows x (n, I); None where x is all zero.

    With groups, weight (O, I / groups): each part of the results reads its own part of the row. The error is
    that of the answers y' in int8, both without the bias (see `row_error`). `tried` are those of `ranges(x)`, where
    they are known. Cost: one layer's product for each range tried.
    """
    codes, weight_scale = code_weight(weight)
    right, held = _product(x, weight, groups), codes.float()
    found = []
    for made in ranges(x) if tried is None else tried:
        sums = _product(centred(x, made.scale, made.zero), held, groups)
        found.append(replace(made, error=row_error(sums * (weight_scale * made.scale), right)))
    return min(found, key=lambda made: made.error, default=None)


def best_output(
    x: Tensor, weight: Tensor, groups: int, bias: Tensor, given: Range, ends: tuple[float, float]
) -> Range | None:
    """The range that brings results `y = clamp(weight x + bias, *ends)` back best; None where they are all zero.

    x (n, I) is itself rounded in the range `given`, weight (O, I / groups) by channel, bias (O,). The error is that of
    all three, by `row_error`. Cost: two products of the layer.
    """
    right = (_product(x, weight, groups) + bias).clamp_(*ends)
    made = min(ranges(right), key=lambda one: row_error(_rounded(right, one), right), default=None)
    if made is None:
        return None
    codes, scale = code_weight(weight, least_scale(bias, given.scale))
    sums = _product(centred(x, given.scale, given.zero), codes.float(), groups)
    got = (sums.mul_(scale * given.scale) + bias).clamp_(*ends)
    return replace(made, error=row_error(_rounded(got, made), right))


def _rounded(x: Tensor, made: Range) -> Tensor:
    """x in the codes of a range, as numbers again."""
    return centred(x, made.scale, made.zero).mul_(made.scale)


def row_error(got: Tensor, right: Tensor) -> float:
    """How far rows (n, O) are off, each by its own size: the root mean square of

        |y' - y| / max(|y|, m)        m the median size of rows that are not zero

    so that one row of a thousand times the size of the others is one row. 0 where nothing differs, of answers that are
    all zero infinite else.
    """
    off, sizes = (got - right).norm(dim=1), right.norm(dim=1)
    alive = sizes[sizes > 0]
    if not len(alive):
        return math.inf if bool((off > 0).any()) else 0.0
    return float((off / sizes.clamp(min=float(alive.median()))).square().mean().sqrt())


def _product(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """x (n, I) times weight (O, I / groups), group by group: (n, O)."""
    if groups == 1:
        return x @ weight.t()
    parts, held = x.reshape(len(x), groups, -1).transpose(0, 1), weight.reshape(groups, -1, weight.shape[1])
    return torch.bmm(parts, held.transpose(1, 2)).transpose(0, 1).flatten(1)


def _candidates(x: Tensor) -> Iterator[tuple[float, float, str]]:
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    yield low, high, "min-max"
    values = x.flatten()
    cuts = {percentile: int((1 - percentile / 100) * len(values)) for percentile in _PERCENTILES}
    # The ends alone, which is some twenty times quicker than to sort all.
    most = max(cuts.values()) + 1
    lowest, highest = values.topk(most, largest=False).values, values.topk(most).values
    for percentile, cut in cuts.items():
        if cut:
            ends = float(lowest[cut]), float(highest[cut])
            yield min(ends[0], 0.0), max(ends[1], 0.0), f"percentile {percentile:g}"
    shares = {share: _squared_error(x, _range(share * low, share * high, "")) for share in _SHARES}
    share = min(shares, key=lambda share: shares[share])
    yield share * low, share * high, f"least squares, {share:.2f} of min-max"


def _range(low: float, high: float, rule: str) -> Range | None:
    """The codes of a range around zero; None for one that float32 cannot divide."""
    scale = float(torch.tensor((high - low) / (CODES[1] - CODES[0]), dtype=torch.float32))
    if not torch.finfo(torch.float32).tiny <= scale < math.inf:
        return None
    return Range(scale, min(max(round(-low / scale), CODES[0]), CODES[1]), rule)


def _squared_error(x: Tensor, made: Range | None) -> float:
    if made is None:
        return math.inf
    return float((_rounded(x, made) - x).square_().sum())
