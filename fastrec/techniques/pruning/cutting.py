"""Graphs with fewer hidden units: rows of the maps that write them, columns of those that read them, and the sizes in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, evaluate, is_call, value
from ..fusion.id_columns import identity
from ..projection.axes import RESHAPES, even_source
from ..projection.groups import Flow
from ..projection.rewrite import name_size, shifted
from ..quantization.layers import bias_of
from .units import Fits
from .widths import Widths

__all__ = ["cut"]

aten = torch.ops.aten


def cut(
    gm: fx.GraphModule, widths: Widths, kept: Mapping[int, Tensor], fits: Fits | None = None
) -> dict[int, int]:
    """Leaves these units of these groups, in order; edits `gm`, whose widths these are. The bytes of the constants made for each group.

    Readers named in `fits` get these weights, others the columns that are left. Tensors that were shared stay shared.
    """
    return _Cutter(gm, widths, kept, fits or {}).run()


class _Cutter:
    """One edit of a graph."""

    def __init__(self, gm: fx.GraphModule, widths: Widths, kept: Mapping[int, Tensor], fits: Fits) -> None:
        self.gm, self.widths, self.kept, self.fits = gm, widths, kept, fits
        self.made: dict[Any, fx.Node] = {}
        self.bytes = dict.fromkeys(kept, 0)
        self.writers = {
            leaf.node: widths.root(index)
            for index, leaf in enumerate(widths.leaves)
            if leaf.user is None and widths.root(index) in kept
        }

    def run(self) -> dict[int, int]:
        """Edits the nodes in order, and works out their values anew."""
        changed: set[fx.Node] = set()
        for node in list(self.gm.graph.nodes):
            flow = self.widths.of.get(node)
            index = self.widths.columns(flow, self.kept) if flow is not None else None
            if node in self.writers or is_call(node, aten.linear.default):
                self._map(node)
            elif index is not None:
                assert flow is not None
                self._resize(node, flow, index)
            if node.op == "call_function" and (
                index is not None or any(x in changed for x in node.all_input_nodes)
            ):
                before = str(node.meta["val"])
                node.meta["val"] = evaluate(self.gm, node)
                if str(node.meta["val"]) != before:
                    changed.add(node)
        return self.bytes

    def _owner(self, flow: Flow) -> int:
        """The first group of a flow that is cut: what is made along it is counted there."""
        return next(root for part in flow.parts if (root := self.widths.root(part.leaf)) in self.kept)

    def _map(self, node: fx.Node) -> None:
        """The rows that a map writes and the columns that it reads."""
        source, held = node.args[:2]
        assert isinstance(source, fx.Node) and isinstance(held, fx.Node)
        flow, bias = self.widths.of.get(source), bias_of(node)
        columns = self.widths.columns(flow, self.kept) if flow is not None else None
        rows = self.kept[self.writers[node]] if node in self.writers else None
        if columns is None and rows is None:
            return
        owner = self.writers[node] if flow is None or columns is None else self._owner(flow)
        weight = self._held(held)
        key: list[Any] = [_told(rows), _told(columns)]
        if columns is not None:
            weight = weight[:, columns]
        shift = None
        if columns is not None and node.name in self.fits:
            fresh, shift = self.fits[node.name]
            weight = fresh.to(weight.dtype)
            key.append(id(fresh))
        if rows is not None:
            weight = weight[rows]
        args: list[Any] = [source, self._constant(held, weight.contiguous(), key, owner)]
        if rows is not None and bias is not None:
            bias = self._constant(bias, self._held(bias)[rows], [_told(rows)], owner)
        if shift is not None and bool(shift.any()):
            shift = shift if rows is None else shift[rows]
            bias = shifted(self.gm, node, bias, shift)
            self._note(bias if bias.op == "get_attr" else bias.all_input_nodes[1], owner)
        node.args, node.kwargs = (*args, *([bias] if bias is not None else [])), {}

    def _resize(self, node: fx.Node, flow: Flow, index: Tensor) -> None:
        """The sizes that a node names, and constants of one number for each unit."""
        if is_call(node, *RESHAPES, aten.expand.default):
            name_size(node, flow.axis, len(index))
        elif is_call(node, aten.batch_norm.default, aten.prelu.default) and flow.axis == 1:
            self._narrow(node, dict.fromkeys(node.all_input_nodes[1:], 0), index, self._owner(flow))
        elif not is_call(node, aten.cat.default, aten.stack.default):
            dims = value(node).ndim if isinstance(node.meta["val"], Tensor) else 0
            axes = {}
            for held in node.all_input_nodes:
                if held not in self.widths.of and isinstance(held.meta["val"], Tensor):
                    axes[held] = flow.axis - (dims - value(held).ndim)
            self._narrow(node, axes, index, self._owner(flow))

    def _narrow(self, node: fx.Node, axes: Mapping[fx.Node, int], index: Tensor, owner: int) -> None:
        """What a node reads beside the units, at the axis where it has one number for each."""
        for held, axis in axes.items():
            if axis < 0 or value(held).shape[axis] in (1,):
                continue
            tensor = constant(self.gm, held)
            if tensor is not None:
                fresh = tensor.index_select(axis, index)
                node.replace_input_with(held, self._constant(held, fresh, [axis, _told(index)], owner))
            elif (even := even_source(held, axis)) is not None:
                node.replace_input_with(held, even)

    def _held(self, node: fx.Node) -> Tensor:
        tensor = constant(self.gm, node)
        assert tensor is not None
        return tensor

    def _constant(self, held: fx.Node, tensor: Tensor, key: list[Any], owner: int) -> fx.Node:
        """A constant made of another, once for all who read the same of it."""
        whole = (identity(self._held(held)), *key)
        if whole not in self.made:
            self.made[whole] = add_constant(self.gm, f"{held.target}_pruned", tensor)
            self._note(self.made[whole], owner)
        return self.made[whole]

    def _note(self, made: fx.Node, owner: int) -> None:
        """A constant that was made for a group."""
        self.bytes[owner] += self._held(made).nbytes


def _told(index: Tensor | None) -> tuple[int, ...] | None:
    """An index that can be a key."""
    return None if index is None else tuple(index.tolist())
