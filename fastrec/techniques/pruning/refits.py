"""Maps that read units which were cut, brought back to what they gave at first."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

import torch
from torch import Tensor

from .least_squares import Rows, refitted
from .units import Fits, Kept, LinearMap

__all__ = ["Alone", "in_turn"]


class Alone:
    """Maps of which nothing but the columns is new, at one width after the other: to say how far the answers move."""

    def __init__(self, readers: Iterable[LinearMap], first: Mapping[str, Tensor]) -> None:
        self._rows: list[tuple[list[LinearMap], Rows]] = []
        for group in _alike(readers):
            x = torch.cat([first[one.name] for one in group])
            self._rows.append((group, Rows(x, _given(x, group[0].weight))))

    def fits(self, kept: Kept) -> Fits:
        """Their weights with these units."""
        found = {}
        for group, rows in self._rows:
            columns = group[0].left(kept)
            made = rows.refitted(group[0].weight[:, columns], columns)
            found.update(dict.fromkeys((one.name for one in group), made))
        return found


def in_turn(
    readers: Iterable[LinearMap],
    first: Mapping[str, Tensor],
    now: Mapping[str, Tensor],
    before: Kept,
    kept: Kept,
    fits: Fits,
) -> Fits:
    """The weights of these maps once more units are cut: `kept` in place of those `before`, with weights `fits`.

    They are fitted to rows `now` (n, I') of the model as it was before this cut, towards what they gave on rows `first` (n, I).
    A map that is now called otherwise than at first keeps its weights.
    """
    found = {}
    for group in _alike(readers):
        one = group[0]
        stays = torch.isin(one.left(before), one.left(kept))
        weight, shift = fits.get(one.name) or (
            one.weight[:, one.left(before)],
            one.weight.new_zeros(len(one.weight)),
        )
        made = weight[:, stays], shift
        if all(len(now.get(each.name, ())) == len(first[each.name]) for each in group):
            x = torch.cat([now[each.name] for each in group])[:, stays]
            y = _given(torch.cat([first[each.name] for each in group]), one.weight)
            made = refitted(x, y, made[0])
        found.update(dict.fromkeys((each.name for each in group), made))
    return found


def _given(x: Tensor, weight: Tensor) -> Tensor:
    return x.double() @ weight.double().t()


def _alike(maps: Iterable[LinearMap]) -> Iterable[list[LinearMap]]:
    """Maps of one weight together: it stays one."""
    found: dict[Hashable, list[LinearMap]] = {}
    for one in maps:
        found.setdefault(one.alike, []).append(one)
    return found.values()
