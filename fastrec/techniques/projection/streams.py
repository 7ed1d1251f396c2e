"""Residual streams of transformer towers, by the data flow: what is added up, what writes it, and the layer norms that read it.

A stream that is normed in front of what reads it (pre-norm) may be turned: LayerNorm(x) = g n + b with n = c / sqrt(|c|^2 / d + eps),
c = x - mean x, and n of turned columns is n turned. Its scale and shift go into the maps that read it. Not so where a norm's
result is added to others (post-norm): its scale, one for each column, lies between the parts of a sum.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ...graph import constant, is_call, value
from .axes import RESHAPES, followed, reshaped

__all__ = ["RESIZED", "Reader", "Stream", "streams"]

aten = torch.ops.aten
_SIZED = (*RESHAPES, aten.expand.default, aten.expand_as.default)
RESIZED = RESHAPES[:3]
"""Moves that name the size of the last axis as the last number of their second argument."""


@dataclass
class Reader:
    """A norm of the stream, or None for the sums as they are: `maps` read what it gives, or what its `moves` do, `others` (user, source) all else."""

    norm: fx.Node | None
    moves: list[fx.Node] = field(default_factory=list)
    maps: list[fx.Node] = field(default_factory=list)
    others: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)


@dataclass
class Stream:
    """Sums of this width in the graph's order, the maps that write them, values that enter them, norms, and why it stays, if it must."""

    width: int
    nodes: list[fx.Node]
    writers: list[fx.Node]
    entries: list[fx.Node]
    readers: list[Reader]
    plain: Reader
    reason: str = ""

    @property
    def name(self) -> str:
        """Its site: that of its first norm."""
        return self.norms[0].name

    @property
    def norms(self) -> list[fx.Node]:
        """Its layer norms, in the graph's order."""
        return [reader.norm for reader in self.readers if reader.norm is not None]

    @property
    def products(self) -> int:
        """Weights of the maps that write and read it."""
        maps = self.writers + [node for reader in (*self.readers, self.plain) for node in reader.maps]
        held: list[Any] = [node.args[1] for node in maps]
        return sum(value(weight).numel() for weight in held)

    @property
    def turns(self) -> int:
        """How many products more it takes to turn what enters and to turn back what leaves."""
        sources = {source for reader in (*self.readers, self.plain) for _, source in reader.others}
        return len(self.entries) + len(sources)


def streams(gm: fx.GraphModule) -> list[Stream]:
    """Every sum that a layer norm over its last axis reads, with all that is added to it; in the graph's order."""
    found: list[Stream] = []
    seen: set[fx.Node] = set()
    order = {node: place for place, node in enumerate(gm.graph.nodes)}
    for node in gm.graph.nodes:
        if _norm_of(gm, node) and node.args[0] not in seen:
            stream = _stream(gm, node.args[0], order)
            seen |= {*stream.nodes, *stream.entries}
            # One norm of a value that nothing is added to is no tower.
            if stream.writers and any(is_call(inner, aten.add.Tensor) for inner in stream.nodes):
                found.append(stream)
    return found


def _norm_of(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a layer norm over one last axis, of float32 and by constants."""
    if not is_call(node, aten.layer_norm.default) or len(node.args[1]) != 1 or node.kwargs:  # type: ignore[arg-type]  # an argument of a node is of any type
        return False
    x: Any = node.args[0]
    fixed = all(arg is None or constant(gm, arg) is not None for arg in node.args[2:4])
    return fixed and value(x).dtype is torch.float32 and isinstance(value(x).shape[-1], int)


def _stream(gm: fx.GraphModule, start: fx.Node, order: dict[fx.Node, int]) -> Stream:
    width = int(value(start).shape[-1])
    inside: set[fx.Node] = set()
    leaves: set[fx.Node] = set()
    norms: list[fx.Node] = []
    left = [start]
    while left:
        node = left.pop()
        if node in inside or node in leaves:
            continue
        sources = _sources(node, width)
        (inside if sources else leaves).add(node)
        left += sources
        for user in node.users:
            if _norm_of(gm, user) and user.args[0] is node:
                norms.append(user)
            elif node in _sources(user, width):
                left.append(user)
    writers = {leaf for leaf in leaves if _writes(gm, leaf, inside, norms)}
    # What no map writes enters as it is, as far as it is added up: one product for all.
    mixed: set[fx.Node] = set(writers)
    for node in sorted(inside, key=order.__getitem__):
        if any(source in mixed for source in _sources(node, width)):
            mixed.add(node)
    entries = [
        node
        for node in inside | leaves
        if node not in mixed and any(user in mixed or user in norms for user in node.users)
    ]
    readers = [_reader(gm, norm) for norm in sorted(norms, key=order.__getitem__)]
    nodes = sorted(inside & mixed, key=order.__getitem__)
    plain = Reader(None)
    for node in nodes:
        _sort_users(
            gm, plain, node, [user for user in node.users if user not in inside and user not in norms]
        )
    reason = ""
    if any(is_call(user, aten.add.Tensor) for reader in readers for user, _ in reader.others):
        reason = (
            "a norm's result is added to what comes after it (post-norm): its scale, one for each column, lies between "
            "the parts of a sum, which no rotation goes through"
        )
    return Stream(
        width,
        nodes,
        sorted(writers, key=order.__getitem__),
        sorted(entries, key=order.__getitem__),
        readers,
        plain,
        reason,
    )


def _sources(node: fx.Node, width: int) -> list[fx.Node]:
    """The values whose columns a sum, a move or a row's own factor passes on as they are; none of anything else."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
        return []
    args: Any = node.args
    if is_call(node, aten.add.Tensor):
        whole = not node.kwargs and all(_is_wide(arg, width) for arg in args[:2])
        return list(args[:2]) if whole else []
    if is_call(node, aten.mul.Tensor):
        wide = [arg for arg in args[:2] if _is_wide(arg, width)]
        even = [arg for arg in args[:2] if _is_even(arg)]
        return wide if len(wide) == len(even) == 1 else []
    source: Any = args[0] if args else None
    return [source] if _is_wide(source, width) and _stays(node, source) else []


def _is_wide(arg: Any, width: int) -> bool:
    return (
        isinstance(arg, fx.Node)
        and isinstance(arg.meta["val"], torch.Tensor)
        and value(arg).ndim > 0
        and value(arg).shape[-1] == width
        and value(arg).dtype is torch.float32
    )


def _is_even(arg: Any) -> bool:
    """Whether a factor is one for all columns of a row."""
    if not isinstance(arg, fx.Node):
        return True
    found = arg.meta["val"]
    return not isinstance(found, torch.Tensor) or found.ndim == 0 or found.shape[-1] == 1


def _stays(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node moves rows whole, their columns last before and after, and names no size of them that cannot be changed."""
    if not isinstance(node.meta["val"], torch.Tensor):
        return False
    shape = value(source).shape
    if is_call(node, *RESIZED):
        return reshaped(shape, value(node).shape, len(shape) - 1) == (value(node).ndim - 1, shape[-1])
    if node.target in _SIZED:
        return False
    found = followed(node, shape, len(shape) - 1)
    return found is not None and found[0] == value(node).ndim - 1


def _writes(gm: fx.GraphModule, leaf: fx.Node, inside: Collection[fx.Node], norms: list[fx.Node]) -> bool:
    """Whether a leaf is a map by constants that the stream alone reads."""
    if not is_call(leaf, aten.linear.default) or any(
        user not in inside and user not in norms for user in leaf.users
    ):
        return False
    return _is_fixed(gm, leaf)


def _is_fixed(gm: fx.GraphModule, node: fx.Node) -> bool:
    weight = constant(gm, node.args[1])
    bias: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    fixed = bias is None or constant(gm, bias) is not None
    return (
        fixed
        and weight is not None
        and weight.dtype is torch.float32
        and weight.ndim == 2
        and bool(weight.isfinite().all())
    )


def _reader(gm: fx.GraphModule, norm: fx.Node) -> Reader:
    found = Reader(norm)
    left = [norm]
    while left:
        node = left.pop()
        moves = [
            user
            for user in node.users
            if user.op == "call_function" and user.all_input_nodes == [node] and _stays(user, node)
        ]
        found.moves += moves
        left += moves
        _sort_users(gm, found, node, [user for user in node.users if user not in moves])
    return found


def _sort_users(gm: fx.GraphModule, found: Reader, node: fx.Node, users: list[fx.Node]) -> None:
    """Those that are maps by constants, which take a basis in, and all else; sizes are asked of neither."""
    for user in users:
        if is_call(user, aten.linear.default) and user.args[0] is node and _is_fixed(gm, user):
            found.maps.append(user)
        elif not is_call(user, aten.sym_size.int):
            found.others.append((user, node))
