"""Hidden units of a graph: which linear maps write them, how far each keeps to itself, and which maps read them.

    h = W x + b (n units)   ->   element by element, joined, moved, repeated, added to units of the same place   ->   V h

Unit j may go where nothing but its own columns holds it: row j of W, and the columns of V that read it. Units that are added
to, multiplied with or laid over each other go together: maps that write them are one *group*. What reads the units one by
one otherwise (a layer norm, a softmax, a sum over them, the answer) or adds something that is no unit to them (a residual of
looked-up rows, the x0 of a cross network) blocks the group, with its reason.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import constant, is_call, value
from ...ops.linears import INT8_LINEAR
from ...places import called, named
from ..fusion.id_columns import identity
from ..fusion.pointwise import is_pointwise
from ..projection.axes import RESHAPES, even_source, followed, place, reshaped
from ..projection.groups import Flow, Leaf, Leaves, Part
from ..quantization.layers import bias_of, linear_maps

__all__ = ["NO_UNITS", "GraphGroup", "Widths", "no_units", "source_of"]

NO_UNITS = "no hidden units of linear maps were found"
"""Said of a model that has none."""

aten = torch.ops.aten
_PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default)


@dataclass
class GraphGroup:
    """Units of one group: how many, who writes them, who reads them, and why they stay, if they must."""

    site: str
    width: int
    writers: list[fx.Node] = field(default_factory=list)
    readers: list[fx.Node] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


class Widths(Leaves):
    """The units of a graph and where they are: `of` gives the flow of each value that holds some."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__()
        self.gm = gm
        self._maps = set(linear_maps(gm))
        self._begun: dict[Any, int] = {}
        self._readers: list[fx.Node] = []
        for node in gm.graph.nodes:
            self._visit(node)
        self._keep_shared()

    def units(self) -> dict[int, GraphGroup]:
        """Every group that linear maps alone write, by the leaf that stands for it, in the graph's order."""
        found: dict[int, GraphGroup] = {}
        for index, leaf in enumerate(self.leaves):
            made = found.setdefault(self.root(index), GraphGroup("", leaf.width))
            made.reasons += self.reasons.get(index, [])
            if leaf.user is None:
                made.site = made.site or leaf.node.name
                made.writers.append(leaf.node)
            else:
                made.reasons.append(f"meets {named(leaf.node)}, which no map writes")
        for node in self._readers:
            for root in {self.root(part.leaf) for part in self.of[source_of(node)].parts}:
                found[root].readers.append(node)
        return {root: made for root, made in found.items() if made.writers}

    def columns(self, flow: Flow, kept: Mapping[int, Tensor]) -> Tensor | None:
        """What is left of a flow's axis where only these units of these groups are; None where that is all of it."""
        roots = [self.root(part.leaf) for part in flow.parts]
        if not any(root in kept for root in roots):
            return None
        starts, start = [], 0
        for part in flow.parts:
            starts.append(start)
            start += part.width
        pieces = [
            start + (kept[root] if root in kept else torch.arange(part.width))
            for start, part, root in zip(starts, flow.parts, roots, strict=True)
        ]
        return torch.cat(pieces)

    def places(self, flow: Flow, root: int) -> Tensor:
        """The columns (n, m) of a flow that hold each of the n units of a group, m of them each."""
        found, start = [], 0
        for part in flow.parts:
            if self.root(part.leaf) == root:
                found.append(start + torch.arange(part.width))
            start += part.width
        return torch.stack(found, 1)

    def _visit(self, node: fx.Node) -> None:
        read = [source for source in node.all_input_nodes if source in self.of]
        if read and not self._asks_shape(node, read):
            reason = self._follow(node, read)
            if reason:
                name = called(node)
                for source in read:
                    self.block(self.of[source], f"{name} {reason}" if name else reason)
                self.of.pop(node, None)
        if node in self._maps and node not in self.of and value(node).shape[-1] > 1:
            self._begin(node)

    def _begin(self, node: fx.Node) -> None:
        """A map writes units of its own; one of the same weight writes them again."""
        weight, bias = constant(self.gm, node.args[1]), bias_of(node)
        assert weight is not None
        axis = value(node).ndim - 1
        leaf = self.add(Leaf(node, axis, len(weight)))
        self.of[node] = Flow(axis, (Part(len(weight), leaf),))
        if bias is not None and constant(self.gm, bias) is None:
            self.block(self.of[node], "their bias is no constant")
        # Maps that share a weight or a bias keep the same rows of it.
        for held in (node.args[1], bias):
            tensor = constant(self.gm, held)
            if tensor is not None:
                self.join(leaf, self._begun.setdefault(identity(tensor), leaf))

    def _keep_shared(self) -> None:
        """A weight that is shared stays one: all who read units by it read the same, and nobody reads it otherwise."""
        weights = {node.args[1] for node in self._maps}
        users: dict[Any, list[fx.Node]] = {}
        whole: set[Any] = set()
        for node in self.gm.graph.nodes:
            held = constant(self.gm, node)
            if held is not None and held.numel():
                memory = held.data_ptr(), held.numel()
                users.setdefault(memory, []).extend(node.users)
                whole |= {memory} if node in weights else set()
        readers = set(self._readers)
        for nodes in [users[memory] for memory in users if memory in whole]:
            flows = [self.of[source_of(node)] for node in nodes if node in readers]
            written = [self.of[node] for node in nodes if node in self._maps and node in self.of]
            odd = next((node for node in nodes if node not in self._maps), None)
            half = next((node for node in nodes if flows and node not in readers), None)
            stranger = odd or half
            if stranger is not None:
                for flow in (*flows, *(written if odd else ())):
                    self.block(flow, f"{named(stranger)} reads the weight that maps them as well")
            elif not all(self.pair(flows[0], flow) for flow in flows[1:]):
                for flow in flows:
                    self.block(flow, "maps of one weight read them beside others")

    def _asks_shape(self, node: fx.Node, read: Sequence[fx.Node]) -> bool:
        """Whether a node reads no more than another axis's size."""
        return is_call(node, aten.sym_size.int) and bool(node.args[1] != self.of[read[0]].axis)

    def _follow(self, node: fx.Node, read: Sequence[fx.Node]) -> str | None:
        """Where the units are in what `node` gives, or why they stay."""
        if node.op == "output":
            return "they are among the model's answers"
        if is_call(node, aten.linear.default):
            return self._read(node)
        if node.target is operator.getitem:
            self.of[node] = self.of[read[0]]
            return None
        if is_call(node, aten.cat.default, aten.stack.default):
            return self._laid(node)
        if is_call(node, *_PRODUCTS):
            return self._product(node)
        if is_call(node, aten.einsum.default):
            return self._sum_of_products(node, read)
        if is_call(node, aten.batch_norm.default) or (
            is_call(node, aten.prelu.default) and not is_pointwise(node)
        ):
            return self._per_channel(node, read)
        if len(read) == 1 and node.args[0] is read[0]:
            found = self._moved(node, read[0])
            if found is not None:
                self.of[node] = found
                return None
        if is_pointwise(node):
            return self._by_element(node)
        return "reads them otherwise than one by one"

    def _read(self, node: fx.Node) -> str | None:
        flow = self.of.get(source_of(node))
        if flow is None or node not in self._maps or flow.axis != value(source_of(node)).ndim - 1:
            return "maps them by no constant weight, or along another axis"
        weight = constant(self.gm, node.args[1])
        if weight is None or not bool(weight.isfinite().all()):
            return "reads them by weights that are not finite"
        self._readers.append(node)
        return None

    def _moved(self, node: fx.Node, source: fx.Node) -> Flow | None:
        """The flow after a move, or a sum over other axes."""
        flow, shape = self.of[source], value(source).shape
        if node.target not in RESHAPES:
            found = followed(node, shape, flow.axis)
            return None if found is None else replace(flow, axis=found[0])
        moved = reshaped(shape, value(node).shape, flow.axis)
        if moved is None or moved[1] < flow.width:
            return None
        return replace(flow, axis=moved[0], parts=flow.parts * (moved[1] // flow.width))

    def _per_channel(self, node: fx.Node, read: Sequence[fx.Node]) -> str | None:
        """Numbers of each channel, which go with it: channels are the second axis."""
        flow = self.of.get(source_of(node))
        held = node.all_input_nodes[1:]
        if (
            flow is None
            or len(read) != 1
            or flow.axis != 1
            or any(constant(self.gm, x) is None for x in held)
        ):
            return "has channels that are not theirs alone"
        self.of[node] = flow
        return None

    def _by_element(self, node: fx.Node) -> str | None:
        """Element by element, of units in the same place, of constants, and of what is one for all units."""
        dims, first = value(node).ndim, None
        for source in node.all_input_nodes:
            if source not in self.of:
                continue
            flow = self.of[source]
            flow = replace(flow, axis=flow.axis + dims - value(source).ndim)
            if first is not None and (first.axis != flow.axis or not self.pair(first, flow)):
                return "puts them beside units of another kind"
            first = first or flow
        assert first is not None
        for source in node.all_input_nodes:
            held = source.meta["val"]
            if source in self.of or not isinstance(held, torch.Tensor):
                continue
            at = first.axis - (dims - held.ndim)
            alone = at < 0 or held.shape[at] == 1 or constant(self.gm, source) is not None
            if not alone and even_source(source, at) is None:
                return f"puts {named(source)} beside them, which is no unit"
        self.of[node] = first
        return None

    def _laid(self, node: fx.Node) -> str | None:
        """cat and stack: beside other columns, or over units of the same place."""
        given: Any = node.args[0]
        stacked = is_call(node, aten.stack.default)
        dim = place(node.args[1] if len(node.args) > 1 else 0, value(node).ndim)
        flows = [self.of.get(source) for source in given]
        axes = {flow.axis for flow in flows if flow}
        axis = axes.pop()
        if axes:
            return "lays them beside units of another axis"
        if not stacked and dim == axis:
            parts: list[Part] = []
            for source, flow in zip(given, flows, strict=True):
                width = value(source).shape[axis]
                if not flow and not isinstance(width, int):
                    return "lays them beside columns of no fixed number"
                # What is laid beside them is no unit, and stays.
                parts += flow.parts if flow else [Part(width, self.add(Leaf(source, axis, width, user=node)))]
            self.of[node] = Flow(axis, tuple(parts))
            return None
        known = [flow for flow in flows if flow]
        if len(known) < len(flows):
            return "lays them over values that are no units"
        if not all(self.pair(known[0], flow) for flow in known[1:]):
            return "lays units of different maps over each other"
        self.of[node] = replace(known[0], axis=axis + (stacked and dim <= axis))
        return None

    def _product(self, node: fx.Node) -> str | None:
        """Sums of rows with weights that are one for all units; a sum over the units themselves ends them."""
        a, b = node.args[:2]
        assert isinstance(a, fx.Node) and isinstance(b, fx.Node)
        left, right, dims = self.of.get(a), self.of.get(b), value(node).ndim
        if right and not left and value(a).ndim > 1 and value(b).ndim > 1 and right.axis == value(b).ndim - 1:
            self.of[node] = replace(right, axis=dims - 1)
            return None
        if left and not right and value(b).ndim > 1 and value(a).ndim > 1 and left.axis == value(a).ndim - 2:
            self.of[node] = replace(left, axis=dims - 2)
            return None
        return "adds up products of them"

    def _sum_of_products(self, node: fx.Node, read: Sequence[fx.Node]) -> str | None:
        """einsum: as a product, where one operand has the units and the result has them still."""
        equation, operands = node.args[:2]
        terms, _, result = str(equation).replace(" ", "").partition("->")
        letters: Any = dict(zip(operands, terms.split(","), strict=True))  # type: ignore[arg-type]  # an argument of a node is of any type
        letter = letters[read[0]][self.of[read[0]].axis] if "." not in terms else ""
        if (
            len(letters) < terms.count(",") + 1
            or len(read) > 1
            or terms.count(letter) != 1
            or letter not in result
        ):
            return "adds up products of them"
        self.of[node] = replace(self.of[read[0]], axis=result.index(letter))
        return None


def no_units(gm: fx.GraphModule, technique: str) -> str:
    """Why a graph has no hidden units that `technique` could take."""
    integers = any(is_call(node, INT8_LINEAR) for node in gm.graph.nodes)
    return f"its linear maps are in 8 bits already: put {technique} first" if integers else NO_UNITS


def source_of(node: fx.Node) -> fx.Node:
    """What a map reads."""
    source: Any = node.args[0]
    assert isinstance(source, fx.Node)
    return source
