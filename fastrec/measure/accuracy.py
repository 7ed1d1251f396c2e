"""How far a fast model's outputs are from the original's, without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from ..errors import MeasurementError

__all__ = ["Fidelity", "fidelity"]

ALLOWANCE = 1e-5  # difference between two fp32 evaluations of one formula that no one can call an error
NEAR_TIE = 1e-4  # of the spread: scores closer than this have no order to keep
LISTS = 100  # Kendall's tau is taken of at most this many lists


@dataclass(frozen=True)
class Fidelity:
    """The differences between two sets of outputs for the same `rows`.

    `max_abs`: largest |fast - original| over the floats that are finite in both.
    `max_relative_to_spread`: the same over the standard deviation of its output; None where every output is
    constant. An output may vary so little that a small `max_abs` proves nothing: read both.
    `differing`: integers and booleans that differ.
    `nonfinite_alike`: NaN and the infinities stand in the same places.
    `identical`: every element equal, bit for bit but for NaN payloads and the sign of zero.
    `exact`: equal up to float rounding: see `fidelity`.
    `rank_kept`: share of scores that stand above and below the same scores of their list as before, scores
    closer than 1e-4 of the spread not compared; `kendall_tau`: the lowest tau-b of a list, by the same rule. A
    list is the batch where an output has one score per row, else the scores of one row. None without lists.
    """

    rows: int
    max_abs: float
    max_relative_to_spread: float | None
    differing: int
    nonfinite_alike: bool
    identical: bool
    exact: bool
    rank_kept: float | None
    kendall_tau: float | None


def fidelity(original: Sequence[Tensor], fast: Sequence[Tensor]) -> Fidelity:
    """Compare the flat outputs of two models on the same batch.

    With scale = max |original| and spread = std(original) of an output, differences d count as float rounding
    while no integer differs, NaN stand alike, and d <= max(1e-5, 16 eps) max(1, scale) and
    d <= max(1e-3 spread, 16 eps scale).

    Raises `MeasurementError` when number, shapes or dtypes of the outputs differ. Linear in the outputs but for
    the ranking, which sorts them.

    Example:
        >>> import torch
        >>> scores = torch.tensor([0.1, 0.7, 0.4])
        >>> f = fidelity((scores,), (scores + 1e-7,))
        >>> f.exact, f.identical, f.rank_kept
        (True, False, 1.0)
    """
    if len(original) != len(fast):
        raise MeasurementError(f"the fast model returns {len(fast)} outputs, the original {len(original)}")
    parts = []
    for index, (ours, theirs) in enumerate(zip(fast, original, strict=True)):
        for what in ("shape", "dtype"):
            got, expected = getattr(ours, what), getattr(theirs, what)
            if got != expected:
                raise MeasurementError(f"output {index} has {what} {got}, the original's has {expected}")
        parts.append(_compare(_plain(theirs), _plain(ours)))
    relative = [part.max_relative_to_spread for part in parts if part.max_relative_to_spread is not None]
    kept = [part.rank_kept for part in parts if part.rank_kept is not None]
    taus = [part.kendall_tau for part in parts if part.kendall_tau is not None]
    return Fidelity(
        rows=max((part.rows for part in parts), default=0),
        max_abs=max((part.max_abs for part in parts), default=0.0),
        max_relative_to_spread=max(relative, default=None),
        differing=sum(part.differing for part in parts),
        nonfinite_alike=all(part.nonfinite_alike for part in parts),
        identical=all(part.identical for part in parts),
        exact=all(part.exact for part in parts),
        rank_kept=min(kept, default=None),
        kendall_tau=min(taus, default=None),
    )


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _compare(original: Tensor, fast: Tensor) -> Fidelity:
    """The fidelity of one output."""
    rows = original.shape[0] if original.dim() else 1
    if not original.is_floating_point():
        differing = int((original != fast).sum())
        return Fidelity(rows, 0.0, None, differing, True, differing == 0, differing == 0, None, None)
    eps = torch.finfo(original.dtype).eps
    s, t = original.double(), fast.double()
    finite = s.isfinite() & t.isfinite()
    same = (s == t) | (s.isnan() & t.isnan())
    alike = bool((finite | same).all())
    at, to = s[finite], t[finite]
    if not at.numel():
        return Fidelity(rows, 0.0, None, 0, alike, alike, alike, None, None)
    worst, scale = float((at - to).abs().max()), float(at.abs().max())
    spread = float(at.std(correction=0))
    # The spread of a constant comes out as rounding of its mean, not as 0.
    varies = spread > eps * scale
    rounding = min(max(ALLOWANCE, 16 * eps) * max(1.0, scale), max(1e-3 * spread, 16 * eps * scale))
    kept = tau = None
    if alike and varies and bool(finite.all()):
        kept, tau = _ranking(s, t, NEAR_TIE * spread)
    return Fidelity(
        rows=rows,
        max_abs=worst,
        max_relative_to_spread=worst / spread if varies else None,
        differing=0,
        nonfinite_alike=alike,
        identical=bool(same.all()),
        exact=alike and worst <= rounding,
        rank_kept=kept,
        kendall_tau=tau,
    )


def _ranking(original: Tensor, fast: Tensor, near: float) -> tuple[float | None, float | None]:
    """Share of scores whose rank is kept, and the lowest Kendall tau of a list."""
    scores = original.numel() // original.shape[0] == 1
    s = original.reshape(1, -1) if scores else original.reshape(-1, original.shape[-1])
    t = fast.reshape(s.shape)
    if s.shape[1] < 2:
        return None, None
    s, order = s.sort(dim=1)
    t = t.gather(1, order)
    # A rank is kept when all that stood clearly below are still below, and all clearly above still above.
    ends = torch.full((len(s), 1), torch.inf, dtype=s.dtype)
    highest_of_first = torch.cat([-ends, t.cummax(dim=1).values], dim=1)
    lowest_of_last = torch.cat([t.flip(1).cummin(dim=1).values.flip(1), ends], dim=1)
    below = torch.searchsorted(s, s - near, right=False)
    above = torch.searchsorted(s, s + near, right=True)
    kept = (highest_of_first.gather(1, below) < t) & (lowest_of_last.gather(1, above) > t)
    settled = torch.where((s - t).abs() <= near, s, t)  # so that near ties do not count as swaps
    chosen = range(0, len(s), -(-len(s) // LISTS))
    taus = (float(stats.kendalltau(s[i].numpy(), settled[i].numpy()).statistic) for i in chosen)
    return float(kept.double().mean()), min((tau for tau in taus if not math.isnan(tau)), default=None)
