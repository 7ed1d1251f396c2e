"""Which events of a history are real, by the masks that are used on the way to their sum."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from ...graph import is_call, operator_name
from ...places import named
from ..fusion.picked_positions import POSITION_MOVES
from ..fusion.positions import Part
from ..fusion.sizes import shape_of

__all__ = ["Mask", "read_masks"]

aten = torch.ops.aten
_NOT = (aten.logical_not.default, aten.bitwise_not.default)
# A score filled with less than this weighs nothing.
_NOTHING = -1e3


@dataclass(frozen=True)
class Mask:
    """A node (rows, T), with dimensions of size 1 between and after; `real` says whether it is true at real events.

    Masks of one `meaning` say the same.
    """

    node: fx.Node
    part: Part
    real: bool
    meaning: tuple[Any, ...]


def read_masks(
    masks: Mapping[fx.Node, Part],
    inner: Mapping[fx.Node, Part],
    rows: Collection[sympy.Expr],
    left: type[Exception],
) -> dict[fx.Node, Mask]:
    """What these nodes (rows, T) mask, which all say the same. Raises `left` with the reason otherwise."""
    found: dict[fx.Node, Mask] = {}
    for node, part in masks.items():
        shape, axis = shape_of(node), part.place.axis
        others = [size for k, size in enumerate(shape) if k not in (0, len(shape) + axis)]
        if axis == -len(shape) or shape[0] not in rows or any(size != 1 for size in others):
            raise left(f"{named(node)} masks more than events: it has shape {tuple(map(str, shape))}")
        senses = set(_senses(node, _within(node, inner), inner))
        if len(senses) != 1 or None in senses:
            raise left(f"{named(node)} masks events in a way that is not known")
        real = senses == {True}
        found[node] = Mask(node, part, real, _meaning(node, real))
    if len({mask.meaning for mask in found.values()}) > 1:
        raise left(f"{', '.join(map(named, found))} mask different events")
    return found


def _senses(node: fx.Node, users: Iterable[fx.Node], inner: Mapping[fx.Node, Part]) -> Iterable[bool | None]:
    """For each use of a mask, whether it is true at real events; None where that cannot be told."""
    for user in users:
        fills = [fill for fill in user.args if isinstance(fill, (int, float))]
        nothing = len(fills) == 1 and (fills[0] == 0 or fills[0] < _NOTHING)
        if is_call(user, aten.masked_fill.Scalar) and user.args[1] is node:
            yield False if nothing else None
        elif is_call(user, aten.where.ScalarOther, aten.where.ScalarSelf) and user.args[0] is node:
            yield is_call(user, aten.where.ScalarOther) if nothing else None
        elif is_call(user, aten.mul.Tensor) and user.args[0] is not user.args[1]:
            # Of scores; or a number that is then added to them.
            yield None if fills and not nothing else not fills
        elif is_call(user, aten.rsub.Scalar) and user.args[1] == 1:
            yield from (
                None if sense is None else not sense for sense in _senses(user, _within(user, inner), inner)
            )
        elif operator_name(user) in POSITION_MOVES:
            yield from _senses(user, _within(user, inner), inner)
        else:
            yield None


def _within(node: fx.Node, inner: Mapping[fx.Node, Part]) -> list[fx.Node]:
    return [user for user in node.users if user in inner]


def _meaning(node: fx.Node, real: bool) -> tuple[Any, ...]:
    """What a mask says, the same for masks of one comparison."""
    while is_call(node, *_NOT) or operator_name(node) in POSITION_MOVES:
        real ^= is_call(node, *_NOT)
        node = node.args[0]  # type: ignore[assignment]  # an argument of a node is of any type
    if is_call(node, aten.eq.Scalar, aten.ne.Scalar):
        return (*node.args, real == is_call(node, aten.ne.Scalar))
    return node, real
