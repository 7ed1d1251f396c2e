"""Blocks on a residual stream: what lies between a value and a sum that adds to it what was made of it.

    y = x + f(x, others)        x and y of one shape; others do not come from x

f's region is all that comes from x and goes into f. It is a block where nothing in it is read outside, so that the sum alone says
what it does: the attention of a transformer or its feed-forward part, normed before or after, a layer of a cross network
x0 * (W x + b) + x, a residual part of a tower. A sum may have other parts beside x: x + g(x) + f(x) has one block for f.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import is_call, value
from ...places import named
from ..quantization.layers import is_convolution

__all__ = ["Block", "blocks"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Block:
    """`add` is y, `rest` its operand that holds x, `x` and `branch` (f) as above; channels lie along `axis`.

    `reason` says why it must stay, if it must.
    """

    add: fx.Node
    rest: fx.Node
    x: fx.Node
    branch: fx.Node
    axis: int
    reason: str

    def within(self, copy: fx.GraphModule) -> Block:
        """The same block of a copy of its graph."""
        nodes = {node.name: node for node in copy.graph.nodes}
        add, rest, x, branch = (nodes[node.name] for node in (self.add, self.rest, self.x, self.branch))
        return replace(self, add=add, rest=rest, x=x, branch=branch)


def blocks(gm: fx.GraphModule, taken: Mapping[fx.Node, int]) -> list[Block]:
    """The blocks of a graph in its order, of what `taken` says takes multiply-adds."""
    place = {node: k for k, node in enumerate(gm.graph.nodes)}
    found = []
    for node in gm.graph.nodes:
        if _adds(node):
            first, second = node.args
            block = _block(node, first, second, place, taken) or _block(node, second, first, place, taken)
            if block is not None:
                found.append(block)
    return found


def _adds(node: Any) -> bool:
    """Whether the node is the sum of two tensors, of two dimensions and more."""
    if not is_call(node, aten.add.Tensor) or node.kwargs or len(node.args) != 2:
        return False
    alike = all(isinstance(part, fx.Node) and _is_tensor(part) for part in node.args)
    return alike and value(node).ndim >= 2 and node.args[0] is not node.args[1]


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _block(
    add: fx.Node,
    rest: fx.Node,
    branch: fx.Node,
    place: Mapping[fx.Node, int],
    taken: Mapping[fx.Node, int],
) -> Block | None:
    """The block that this branch of a sum is, if it comes from the other operand or from a part of it."""
    found: Block | None = None
    for x in _parts(rest):
        region = _between(x, branch, place)
        maps = [node for node in region if taken.get(node)]
        if maps:
            along = is_convolution(maps[-1]) and _shape(maps[-1]) == _shape(branch)
            block = Block(add, rest, x, branch, 1 if along else -1, "")
            reason = _reason(block, region)
            if not reason:
                return block
            found = found or replace(block, reason=reason)
    return found


def _parts(rest: fx.Node) -> list[fx.Node]:
    """The operand, and if it is a sum that is read here only, the parts of that."""
    found, left = [], [rest]
    while left:
        node = left.pop(0)
        if node.op == "get_attr":
            continue
        found.append(node)
        if _adds(node) and len(node.users) == 1:
            left += node.args  # type: ignore[arg-type]  # `_adds` has seen two nodes
    return found


def _between(x: fx.Node, branch: fx.Node, place: Mapping[fx.Node, int]) -> list[fx.Node]:
    """What comes from x and goes into the branch, itself among them, in order; nothing where it does not come from x."""
    before: set[fx.Node] = set()
    left = [branch]
    while left:
        node = left.pop()
        if node not in before and place[node] > place[x]:
            before.add(node)
            left += node.all_input_nodes
    found: dict[fx.Node, None] = {}
    for node in sorted(before, key=lambda one: place[one]):
        # Sizes of x say nothing that its sum does not.
        if any(source is x or source in found for source in node.all_input_nodes) and not _is_size(node):
            found[node] = None
    return list(found) if branch in found else []


def _is_size(node: fx.Node) -> bool:
    return is_call(node, aten.sym_size.int)


def _reason(block: Block, region: list[fx.Node]) -> str:
    """Why a block must stay, or nothing."""
    add, x, branch = block.add, block.x, block.branch
    inside = {*region, add}
    if _shape(x) != _shape(add) or _shape(branch) != _shape(add):
        return f"what it adds {_said(branch)} is not of the shape of what it reads {_said(x)}"
    if not isinstance(value(add).shape[block.axis], int):
        return "how many channels it has is not fixed"
    if {value(node).dtype for node in (x, branch, add)} != {torch.float32}:
        return "it is not in float32"
    for node in region:
        outside = next((user for user in node.users if user not in inside and not _is_size(user)), None)
        if outside is not None:
            reader = "the answer" if outside.op == "output" else named(outside)
            return f"{named(node)} inside it is read outside it, by {reader}"
    return ""


def _shape(node: fx.Node) -> tuple[str, ...]:
    return tuple(str(size) for size in value(node).shape)


def _said(node: fx.Node) -> str:
    return f"({', '.join(_shape(node))})"
