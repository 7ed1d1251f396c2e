"""Graphs in which groups of tables have other columns: tables, entries, maps, and the sizes in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit, evaluate, is_call, sweep, value
from ..fusion.moves import forget_moved
from ..reads import Table
from .axes import RESHAPES, even_source, place
from .bases import Basis
from .flows import Flows
from .groups import Flow, Group

__all__ = ["Projected", "name_size", "project", "settle", "shifted"]

aten = torch.ops.aten
_PARTS = 1 << 16
_BY_ELEMENT = (aten.mul.Tensor, aten.div.Tensor)


@dataclass
class Projected:
    """The constants that were made: the tables by name, and their bytes for each group."""

    names: set[str] = field(default_factory=set)
    bytes: dict[int, int] = field(default_factory=dict)


def project(
    gm: fx.GraphModule, flows: Flows, groups: Mapping[int, Group], bases: Mapping[int, Basis]
) -> Projected:
    """Gives the groups of these roots their bases; edits `gm`, whose flows these are."""
    made = Projected(bytes=dict.fromkeys(bases, 0))
    changed: set[fx.Node] = set()
    for root, basis in bases.items():
        for table in groups[root].tables:
            name = add_constant(gm, f"{table.name}_projected", _rows(table.tensor, basis))
            made.names.add(str(name.target))
            made.bytes[root] += constant_bytes(gm, name)
            _read_instead(table, name)
            changed |= {read.node for read in table.reads}
        changed |= _enter(gm, groups[root], basis)
    for node in list(gm.graph.nodes):
        if node in flows.of or any(
            source in changed or source in flows.of for source in node.all_input_nodes
        ):
            _resize(gm, node, flows, bases, made)
            if node.op == "call_function":
                before = _shapes(node.meta["val"])
                node.meta["val"] = evaluate(gm, node)
                if _shapes(node.meta["val"]) != before:
                    changed.add(node)
    return made


def constant_bytes(gm: fx.GraphModule, node: fx.Node) -> int:
    """The bytes of a constant."""
    tensor = constant(gm, node)
    assert tensor is not None
    return tensor.nbytes


def _rows(table: Tensor, basis: Basis) -> Tensor:
    """(E - m) A, (V, r)."""
    starts = range(0, len(table), _PARTS)
    parts = [table[start : start + _PARTS].double() for start in starts]
    return torch.cat([((part - basis.mean) @ basis.encode).to(table.dtype) for part in parts])


def _read_instead(table: Table, name: fx.Node) -> None:
    for read in table.reads:
        read.node.args = (name, *read.node.args[1:])


def _enter(gm: fx.GraphModule, group: Group, basis: Basis) -> set[fx.Node]:
    """Turns the values that meet rows of the group: x A along their last axis or the one before. Who reads them now."""
    if not group.entries:
        return set()
    turn = add_constant(gm, "entry_projected", basis.encode.t().float().contiguous())
    changed = set()
    for leaf in group.entries:
        user = leaf.user
        if user is None or leaf.node not in user.all_input_nodes:
            continue  # turned already, where one node reads it twice
        with gm.graph.inserting_before(user):
            if leaf.axis == value(leaf.node).ndim - 1:
                turned = emit(gm, aten.linear.default, (leaf.node, turn))
            else:
                turned = emit(gm, aten.matmul.default, (turn, leaf.node))
        user.replace_input_with(leaf.node, turned)
        changed.add(user)
    return changed


def _width(flows: Flows, flow: Flow, bases: Mapping[int, Basis]) -> int:
    """The size of a flow's axis with these bases."""
    roots = [(part.width, flows.root(part.leaf)) for part in flow.parts]
    return sum(bases[root].encode.shape[1] if root in bases else width for width, root in roots)


def _resize(
    gm: fx.GraphModule, node: fx.Node, flows: Flows, bases: Mapping[int, Basis], made: Projected
) -> None:
    """The sizes and weights that a node names, where they are of columns that changed."""
    source: Any = node.args[0] if node.args else None
    flow = flows.of.get(node)
    if is_call(node, aten.linear.default) and flow is None and source in flows.of:
        _remap(gm, node, flows, bases, made)
    if flow is None:
        return
    width, dims = _width(flows, flow, bases), value(node).ndim if isinstance(node.meta["val"], Tensor) else 0
    name_size(node, flow.axis, width)
    if is_call(node, *_BY_ELEMENT):
        for arg in node.args[:2]:
            if isinstance(arg, fx.Node) and arg not in flows.of and isinstance(arg.meta["val"], Tensor):
                at = flow.axis - (dims - value(arg).ndim)
                even = even_source(arg, at) if at >= 0 and value(arg).shape[at] != 1 else None
                if even is not None:
                    node.replace_input_with(arg, even)


def name_size(node: fx.Node, axis: int, size: int) -> None:
    """Names another size of an axis, in a reshape or an expand; the source still has the dimensions it had."""
    source: Any = node.args[0] if node.args else None
    if is_call(node, *RESHAPES[:3], aten.expand.default):
        node.args = (source, _with(node.args[1], axis, size), *node.args[2:])
    elif is_call(node, aten.unflatten.int):
        at = place(node.args[1], value(source).ndim)
        if axis >= at:
            node.args = (source, node.args[1], _with(node.args[2], axis - at, size))


def _with(sizes: Any, at: int, size: int) -> list[Any]:
    """The sizes with another one there; -1, which says the rest, says it still."""
    return [size if i == at and given != -1 else given for i, given in enumerate(sizes)]


def _remap(
    gm: fx.GraphModule, node: fx.Node, flows: Flows, bases: Mapping[int, Basis], made: Projected
) -> None:
    """W D for the columns of each part, W m into the bias."""
    source, held = node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(held, fx.Node)
    parts = [(part.width, flows.root(part.leaf)) for part in flows.of[source].parts]
    known = [root for _, root in parts if root in bases]
    if not known:
        return  # a map of rows that stay, by weights of any kind
    weight = constant(gm, held)
    assert weight is not None
    columns, shift = [], torch.zeros(len(weight), dtype=torch.float64)
    for block, (_, root) in zip(weight.double().split([width for width, _ in parts], 1), parts, strict=True):  # type: ignore[no-untyped-call]  # `Tensor.split` has no types
        columns.append(block @ bases[root].decode if root in bases else block)
        if root in bases:
            shift += block @ bases[root].mean
    bias: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    name = add_constant(gm, f"{held.target}_projected", torch.cat(columns, 1).to(weight.dtype))
    made.bytes[known[0]] += constant_bytes(gm, name)
    if bool(shift.any()):
        bias = shifted(gm, node, bias, shift)
    node.args, node.kwargs = ((source, name) if bias is None else (source, name, bias)), {}


def shifted(gm: fx.GraphModule, node: fx.Node, bias: Any, shift: Tensor) -> fx.Node:
    """A bias, which a map may have, and this (O,) more."""
    held = constant(gm, bias)
    if bias is None or held is not None:
        return add_constant(
            gm, f"{node.name}_bias", (shift if held is None else held.double() + shift).float()
        )
    more = add_constant(gm, f"{node.name}_bias", shift.float())
    with gm.graph.inserting_before(node):
        return emit(gm, aten.add.Tensor, (bias, more))


def _shapes(found: Any) -> list[tuple[str, ...]]:
    """The sizes of a value, free ones by their names."""
    parts = found if isinstance(found, (tuple, list)) else (found,)
    return [tuple(str(size) for size in part.shape) for part in parts if isinstance(part, Tensor)]


def settle(gm: fx.GraphModule, mark: str, done: set[str]) -> None:
    """What nobody reads goes; `gm.meta[mark]` names the constants of `done` that are left, which are not to be narrowed again."""
    sweep(gm)
    held = dict(gm.named_buffers()) | dict(gm.named_parameters())
    gm.meta[mark] = frozenset(done & held.keys())
    forget_moved(gm)
