"""What is known of the positions of a request that its mask says are padding, whatever the request.

    equal:  f(x)[t] = f(x)[t']       where x[t] = x[t'], f position by position, and t, t' are padding
    filled: f(x)[t] = c              where f puts c in the place of padding: x * real, masked_fill(x, not real, c)

Padding is what a mask of one request, T bits, leaves out; masks that come from one comparison, `ids == 0` or `ids != 0`,
are one. The ids themselves are equal where they equal the same number. What is multiplied by 0 is taken to be finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import ancestors, constant, is_call, is_free, operator_name, value
from .picked_positions import POSITION_MOVES, is_mask, parts_at
from .positions import Part, arguments

__all__ = ["Padding", "paddings"]

aten = torch.ops.aten
_NOT = (aten.logical_not.default, aten.bitwise_not.default)
_PRODUCTS = (aten.mul.Tensor, aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor)
_COMPARED: dict[Any, bool] = {aten.ne.Scalar: True, aten.eq.Scalar: False}


@dataclass(frozen=True)
class _Bits:
    """A mask of one request: the node that makes its bits, and when it is true.

    It is true where `compared`, ids and a number, differ, if `true`, or where they do not; where there is no number,
    as the node is.
    """

    node: fx.Node
    compared: tuple[fx.Node, Any]
    true: bool


@dataclass(frozen=True)
class _Masking:
    """A call that puts `fill` where its mask is `masked`."""

    mask: fx.Node
    masked: bool
    fill: Any


class Padding:
    """The padding of one mask: where `bits`, T of them, are not `real`."""

    def __init__(self, gm: fx.GraphModule, bits: _Bits, masked: bool) -> None:
        self.bits, self.steps = bits.node, value(bits.node).numel()
        self.key = (bits.compared, bits.true != masked)
        self.real = self.key[1] == _COMPARED.get(bits.node.target, True)
        self._gm = gm
        self._equal: dict[tuple[fx.Node, Part], bool] = {}

    def equal(self, node: fx.Node, part: Part) -> bool:
        """Whether all padding has one row of the node."""
        key = (node, part)
        if key not in self._equal:
            self._equal[key] = self._is_equal(node, part)
        return self._equal[key]

    def _is_equal(self, node: fx.Node, part: Part) -> bool:
        (ids, number), differ = self.key
        if node is ids and number is not None and differ:
            return True
        if self._masking(node, part) is not None:
            return True
        read = parts_at(node, part) if node.op == "call_function" else None
        return read is not None and all(self.equal(argument, mine) for argument, mine in read.items())

    def filled(self, node: fx.Node, part: Part, fill: float) -> bool:
        """Whether all padding has this number in the node, false being 0."""
        masking, bits = self._masking(node, part), _bits(node)
        if masking is not None:
            return bool(masking.fill == fill)
        if bits is not None and fill == 0 and (bits.compared, bits.true) == self.key:
            return True
        read = parts_at(node, part)
        if not read:
            return False
        filled = [argument for argument, mine in read.items() if self.filled(argument, mine, fill)]
        if fill == -math.inf and is_call(node, aten.add.Tensor):
            rest = [argument for argument in arguments(node) if argument not in filled]
            return bool(filled) and all(_adds(self._gm, argument) for argument in rest)
        if operator_name(node) in POSITION_MOVES or (fill == 0 and is_call(node, *_PRODUCTS)):
            return bool(filled)
        return False

    def _masking(self, node: fx.Node, part: Part) -> _Masking | None:
        """The call as one that masks all padding along this dimension."""
        masking = _masking(node)
        bits = _bits(masking.mask) if masking is not None else None
        if masking is None or bits is None or masking.mask not in (parts_at(node, part) or {}):
            return None
        return masking if (bits.compared, bits.true != masking.masked) == self.key else None


def paddings(gm: fx.GraphModule) -> Iterator[Padding]:
    """The padding of every mask, each once: where it masks something, or else where it is false."""
    found = set()
    for node in list(gm.graph.nodes):
        masking = _masking(node) or _Masking(node, masked=False, fill=None)
        bits = _bits(masking.mask)
        if bits is not None:
            padding = Padding(gm, bits, masking.masked)
            if padding.key not in found:
                found.add(padding.key)
                yield padding


def _masking(node: fx.Node) -> _Masking | None:
    if is_call(node, aten.masked_fill.Scalar):
        mask, masked, fill = node.args[1], True, node.args[2]
    elif is_call(node, aten.where.ScalarOther):
        mask, masked, fill = node.args[0], False, node.args[2]
    elif is_call(node, aten.where.ScalarSelf):
        mask, masked, fill = node.args[0], True, node.args[1]
    elif is_call(node, aten.mul.Tensor):
        mask, masked, fill = next((arg for arg in node.args if is_mask(arg)), None), False, 0
    else:
        return None
    return _Masking(mask, masked, fill) if isinstance(mask, fx.Node) else None


def _bits(mask: fx.Node) -> _Bits | None:
    """A node as the mask of one request's positions; None for anything else, and where it is repeated."""
    if not is_mask(mask) or is_free(mask):
        return None
    true, node = True, mask
    while True:
        if is_call(node, *_NOT):
            true, node = not true, _first(node)
        elif operator_name(node) in POSITION_MOVES and is_mask(_first(node)):
            node = _first(node)
        else:
            break
    if node.op == "get_attr" or any(is_free(one) for one in (*ancestors([node]), *node.all_input_nodes)):
        return None
    steps = value(node).numel()
    if steps < 2 or not value(mask).numel() == steps == max(value(mask).shape):
        return None
    if is_call(node, *_COMPARED):
        return _Bits(node, (_first(node), node.args[1]), true == _COMPARED[node.target])
    return _Bits(node, (node, None), true)


def _first(node: fx.Node) -> fx.Node:
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return first


def _adds(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a constant added to -inf leaves it."""
    held: Tensor | None = constant(gm, node)
    return held is not None and bool((held < math.inf).all())
