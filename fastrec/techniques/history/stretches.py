"""What is computed at each event of a history between its lookups and a sum over its events.

    y  =  sum_t f(x_t)     or     sum_t softmax_t(s(x_t)) v(x_t)                x (..., T, d) looked up, f, s, v event by event

Found backwards from the sum: operators element by element, or acting along other dimensions, down to lookups, constants
of T positions and one mask. An event that stands for w of them is to count w times, which a sum can do in one of two ways: the
summed product is weighted, or log w is added in front of its softmax. So what a softmax gives may only be multiplied, added to its like,
or moved until it is summed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ...graph import ancestors, is_call, operator_name, value
from ...places import named
from ..fusion.picked_positions import POSITION_MOVES, is_tensor, parts_at, rebuilds
from ..fusion.positions import Part, Place, arguments
from ..fusion.sizes import shape_of
from .masks import Mask, read_masks

__all__ = ["Left", "Stretch", "Sum", "find_stretch", "has_events", "sums", "tensor_inputs"]

aten = torch.ops.aten
_MATMULS = (aten.matmul.default, aten.bmm.default)
_SOFTMAX = (aten.softmax.int, aten._softmax.default)
# What is as long as its first argument is, weighted or not.
_LINEAR = POSITION_MOVES | {
    "unflatten",
    "expand_as",
    "contiguous",
    "clone",
    "dropout",
    "neg",
    "sum",
    "masked_fill",
    "where",
}


class Left(Exception):
    """Why a history stays as it is."""


@dataclass(frozen=True)
class Sum:
    """A node that sums over `steps` events: along which axis of which argument, counted from the right."""

    node: fx.Node
    steps: int
    read: dict[fx.Node, int]


@dataclass(frozen=True)
class Stretch:
    """The calls between lookups and a sum, in order, what each reads event by event, and what they begin with.

    `leaves` are lookups and constants, `masks` all mean the same, and `softmax` is what weighs the events, if one does.
    """

    end: Sum
    inner: dict[fx.Node, Part]
    read: dict[fx.Node, dict[fx.Node, Part]]
    leaves: dict[fx.Node, Part]
    masks: dict[fx.Node, Mask]
    softmax: fx.Node | None

    @property
    def mask(self) -> Mask | None:
        """Which events are real; None where all are taken to be."""
        return next(iter(self.masks.values()), None)

    @property
    def lookups(self) -> list[fx.Node]:
        """Where the events come from."""
        return [leaf for leaf in self.leaves if is_call(leaf, aten.embedding.default)]


def has_events(node: fx.Node, more_than: int) -> bool:
    """Whether the node looks up rows for more events than that: ids (..., T) that are given."""
    if not is_call(node, aten.embedding.default):
        return False
    ids = arguments(node)[1]
    steps = value(ids).shape[-1] if value(ids).ndim > 1 else 0
    given = [one for one in (ids, *tensor_inputs(ids)) if one.op == "placeholder" and value(one).ndim]
    return isinstance(steps, int) and steps > more_than and bool(given)


def sums(node: fx.Node, more_than: int) -> Iterator[Sum]:
    """The sums over more events than that which the node is."""
    reads: list[dict[fx.Node, int]] = []
    if is_call(node, aten.sum.dim_IntList, aten.mean.dim) and isinstance(node.args[1], (list, tuple)):
        source = arguments(node)[0]
        reads = [
            {source: int(dim) % value(source).ndim - value(source).ndim}
            for dim in node.args[1]
            if isinstance(dim, int)
        ]
    elif is_call(node, *_MATMULS) and len(set(node.args)) == 2:
        left, right = arguments(node)
        if min(value(left).ndim, value(right).ndim) > 1:
            reads = [{left: -1, right: -2}]
    for read in reads:
        steps = {value(argument).shape[axis] for argument, axis in read.items()}
        size = next(iter(steps))
        if len(steps) == 1 and isinstance(size, int) and size > more_than:
            yield Sum(node, size, read)


def find_stretch(gm: fx.GraphModule, end: Sum) -> Stretch:
    """What the sum is computed from. Raises `Left` with the reason where that cannot be done at other events."""
    inner: dict[fx.Node, Part] = {}
    read: dict[fx.Node, dict[fx.Node, Part]] = {}
    leaves: dict[fx.Node, Part] = {}
    masks: dict[fx.Node, Part] = {}
    left = [(node, Part(Place(axis), end.steps, 0)) for node, axis in end.read.items()]
    while left:
        node, part = left.pop()
        known = inner.get(node) or leaves.get(node) or masks.get(node)
        if known is not None:
            if known != part:
                raise Left(f"{named(node)} has its events along two dimensions")
        elif value(node).dtype == torch.bool:
            masks[node] = part
        elif _is_leaf(node):
            if part.place.axis != -2 or value(node).ndim > 3 or not value(node).is_floating_point():
                raise Left(f"{named(node)} does not hold one vector for each event")
            leaves[node] = part
        else:
            inner[node], read[node] = part, _read(node, part)
            left += read[node].items()
    inner = {node: inner[node] for node in gm.graph.nodes if node in inner}
    found = Stretch(end, inner, read, leaves, {}, None)
    if not found.lookups:
        raise Left("what is summed is not looked up")
    for lookup in found.lookups:
        _check_ids(lookup)
    _check_apart(found)
    rows = {shape_of(lookup)[0] for lookup in found.lookups}
    found = replace(found, masks=read_masks(masks, inner, rows, Left))
    return replace(found, softmax=_weights(found))


def _is_leaf(node: fx.Node) -> bool:
    return node.op in ("get_attr", "placeholder") or is_call(node, aten.embedding.default)


def _read(node: fx.Node, part: Part) -> dict[fx.Node, Part]:
    """What a call reads event by event."""
    if _weighs(node, part):
        return {arguments(node)[0]: part}
    found = parts_at(node, part)
    if found is None or not rebuilds(node) or not all(map(is_tensor, found)):
        raise Left(f"{named(node)} mixes events, or merges them with rows")
    if not found and not is_call(node, aten.expand.default):
        raise Left(f"{named(node)} makes one number for each event out of none")
    return found


def _weighs(node: fx.Node, part: Part) -> bool:
    """Whether the node is a softmax over the events."""
    if not is_call(node, *_SOFTMAX):
        return False
    dim, rank = node.args[1], value(node).ndim
    return isinstance(dim, int) and dim % rank - rank == part.place.axis


def _check_ids(lookup: fx.Node) -> None:
    """Raises `Left` where each position of the ids has a constant of its own: those are fields, not events."""
    ids = arguments(lookup)[1]
    for node in ancestors([ids]):
        if is_call(node, aten.add.Tensor) and any(
            other.op == "get_attr" and value(other).numel() > 1 for other in node.all_input_nodes
        ):
            raise Left(f"{named(lookup)} looks up fields: each position of its ids has an offset of its own")


def _check_apart(found: Stretch) -> None:
    """Raises `Left` where events are compared with all events, which are read whole for that."""
    after = set(found.lookups)
    for lookup in found.lookups:
        left = [lookup]
        while left:
            users = [user for user in left.pop().users if user not in after and is_tensor(user)]
            after.update(users)
            left += users
    for node in (*found.inner, found.end.node):
        read = found.read.get(node, found.end.read)
        whole = [one for one in node.all_input_nodes if one not in read and one in after]
        if any(found.end.steps in value(one).shape for one in whole):
            raise Left(
                f"self-attention: in {named(node)} each event meets all others, so none can stand for several"
            )


def tensor_inputs(node: fx.Node) -> set[fx.Node]:
    """The inputs that a node is computed from, sizes left out."""
    found, left = set[fx.Node](), [node]
    while left:
        one = left.pop()
        if one.op == "placeholder":
            found.add(one)
        left += (
            [given for given in one.all_input_nodes if is_tensor(given)] if one.op == "call_function" else []
        )
    return found


def _weights(found: Stretch) -> fx.Node | None:
    """The softmax that weighs the events. Raises `Left` where its weights are more than multiplied on their way."""
    softmaxes = [node for node, part in found.inner.items() if _weighs(node, part)]
    weighted = dict.fromkeys((*found.leaves, *found.masks), False)
    for node in found.inner:
        mine = [weighted[argument] for argument in found.read[node]]
        if node in softmaxes:
            weighted[node] = True
        elif any(mine):
            _check_linear(node, [argument for argument in found.read[node] if weighted[argument]], all(mine))
            weighted[node] = True
        else:
            weighted[node] = False
        if node in softmaxes and any(mine):
            raise Left(f"{named(node)} is a softmax of a softmax")
    last = [weighted[argument] for argument in found.end.read]
    if sum(last) > 1 or len(softmaxes) > 1 or any(last) != bool(softmaxes):
        raise Left("its events are weighed by more than one softmax, or by part of what is summed alone")
    return softmaxes[0] if softmaxes else None


def _check_linear(node: fx.Node, weighted: list[fx.Node], alone: bool) -> None:
    """Raises `Left` unless twice the weights give twice the result."""
    name, first = operator_name(node), arguments(node)[0]
    fills: Any = [argument for argument in node.args if isinstance(argument, (int, float)) and argument != 0]
    if name == "mul":
        good = len(weighted) == 1 and len(set(arguments(node))) == len(arguments(node))
    elif name == "div":
        good = weighted == [first]
    elif name == "matmul":
        good = len(weighted) == 1
    elif name in ("add", "sub", "cat"):
        good = (
            alone
            and all(argument in weighted for argument in arguments(node))
            and (name == "cat" or not fills)
        )
    elif name == "linear":
        good = weighted == [first] and (len(node.args) < 3 or node.args[2] is None)
    elif name in ("masked_fill", "where"):
        good = len(weighted) == 1 and not fills
    else:
        good = name in _LINEAR and weighted == [first]
    if not good:
        raise Left(f"{named(node)} of what a softmax gives is no multiple of it")
