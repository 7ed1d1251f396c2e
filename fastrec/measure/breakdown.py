"""Where the time of one call goes: lookups, products with weights, what mixes fields, and what calling itself costs.

A compiled session does not say what its parts take, so a graph is run in torch, one operator after the other, each with the
clock beside it, and as a whole, in turn:

    own(node)  = max(0, median of the node - median of the cheapest call)
    framework  = median of the whole call - sum of own
    ceiling(p) = total / (total - p)        how many times faster a call were if part p took nothing

The cheapest call is an operator that computes nothing, called by the same entry as the node (an overload, or torch's own binding). What
it takes is what torch takes to call anything, so it is no node's own; *framework* is all of the whole call that is not the own time of some operator: Python, dispatch, views, sizes,
and in a compiled model whatever lies between its kernels.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ..errors import MeasurementError
from ..graph import VIEWS, operator_name

__all__ = ["KINDS", "Breakdown", "Kind", "Part", "breakdown", "kind_of"]

Kind = Literal["lookup", "interaction", "dense", "framework"]
KINDS: tuple[Kind, ...] = ("lookup", "interaction", "dense", "framework")
"""The kinds of parts, in the order of a recommender's layers."""

# They copy, so they are work.
_COPIES = ("clone", "contiguous")
_SIZES = ("size", "sym_size", "item", "getitem")
_BAGS = ("rows_of", "sum_of_rows", "bags_of")
_PICKS = ("index_select", "index", "gather", "take")
_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu", "bilinear")
# Where the operands of a product are among its arguments.
_PRODUCTS = {
    **dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot", "inner", "tensordot"), slice(0, 2)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), slice(1, 3)),
    "einsum": slice(1, 2),
}


_OVERLOAD, _BINDING = torch.ops.aten.alias.default, torch.detach


@dataclass(frozen=True)
class Part:
    """What one kind takes of a call, in seconds, by how many calls of operators."""

    kind: Kind
    seconds: float
    calls: int


@dataclass(frozen=True)
class Breakdown:
    """The parts of a call of `rows` rows, which add up to `seconds`: medians over `n` runs. `label` says of what."""

    label: str
    rows: int
    seconds: float
    parts: tuple[Part, ...]
    n: int

    def ceiling(self, part: Part) -> float | None:
        """How many times faster a call were if this part took nothing; None where it is all of it.

        Example:
            >>> part = Part("dense", 0.003, 4)
            >>> Breakdown("original", 100, 0.004, (part, Part("framework", 0.001, 2)), 30).ceiling(part)
            4.0
        """
        rest = self.seconds - part.seconds
        return self.seconds / rest if rest > 1e-9 * self.seconds else None


def breakdown(
    graph: fx.GraphModule,
    inputs: Callable[[int], Sequence[Tensor]],
    call: Callable[[Sequence[Tensor]], object] | None = None,
    *,
    label: str,
    rows: int,
    seconds: float = 0.5,
    min_rounds: int = 5,
    max_rounds: int = 300,
    warmup: int = 2,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Breakdown:
    """Where a call goes whose operators are those of `graph`; `call` is the whole of it, the graph itself if None.

    Each round takes the graph apart on one fresh batch and calls the whole on another, so that both find their rows cold,
    the first of the two changing from round to round. At least `min_rounds`, then on until `seconds` have passed. Where
    operators one by one take longer than the whole, as they may where it is compiled, their times are scaled to it.

    `inputs(i)` makes the i-th flat batch, outside the timing; `clock` counts nanoseconds. Raises `MeasurementError` where
    the whole takes no time on this clock; errors of the graph pass through.
    """
    whole = call or (lambda flat: graph(*flat))
    apart = _Apart(graph, clock)
    took: list[int] = []

    def timed(flat: Sequence[Tensor]) -> int:
        start = clock()
        whole(flat)
        return clock() - start

    with torch.no_grad():
        for i in range(warmup):
            whole(inputs(2 * i))
            apart.run(inputs(2 * i + 1))
        apart.forget()
        began = clock()
        for i in range(max_rounds):
            if i >= min_rounds and clock() - began >= seconds * 1e9:
                break
            one, other = inputs(2 * (warmup + i)), inputs(2 * (warmup + i) + 1)
            if i % 2:
                apart.run(other)
            took.append(timed(one))
            if not i % 2:
                apart.run(other)
    total = float(np.median(took)) / 1e9
    if total <= 0:
        raise MeasurementError(
            f"the clock is too coarse for {label!r}: a call of 0 s; take more rows per call"
        )
    return Breakdown(label, rows, total, _parts(apart, total), len(took))


def _parts(apart: _Apart, total: float) -> tuple[Part, ...]:
    """The parts of each kind, those without calls left out, and the rest."""
    own = dict.fromkeys(KINDS, 0.0)
    calls = dict.fromkeys(KINDS, 0)
    for node, took in apart.own().items():
        own[apart.kinds[node]] += took
        calls[apart.kinds[node]] += 1
    # Views and sizes are no work: what they take is among what is left.
    own["framework"] = 0.0
    scale = min(1.0, total / (sum(own.values()) or 1.0))
    own = {kind: took * scale for kind, took in own.items()}
    own["framework"] = max(0.0, total - sum(own.values()))
    return tuple(Part(kind, own[kind], calls[kind]) for kind in KINDS if calls[kind] or kind == "framework")


def kind_of(node: fx.Node) -> Kind:
    """The kind that a call of a graph belongs to: a lookup, a product with weights, work between values, or no work.

    Reading rows of a constant is a lookup; a linear map, a convolution, a recurrent layer and a product with a constant are
    dense; views, sizes and arithmetic on them are the framework's; all else is interaction.
    """
    name = operator_name(node) or (str(node.target) if node.op == "call_method" else "")
    operands: tuple[Any, ...] = tuple(node.args)
    if _moves_nothing(node, name):
        return "framework"
    if "embedding" in name or name.startswith("lookup") or name in _BAGS:
        return "lookup"
    if name in _PICKS and _is_constant(operands[0]):
        return "lookup"
    if "linear" in name or "conv" in name or name in _LAYERS:
        return "dense"
    if name in _PRODUCTS:
        found = operands[_PRODUCTS[name]]
        flat = found[0] if name == "einsum" else found
        return "dense" if any(map(_is_constant, flat)) else "interaction"
    return "interaction"


def _moves_nothing(node: fx.Node, name: str) -> bool:
    """Whether a call gives a view of its argument, or a number that is worked out without tensors."""
    target = node.target
    if isinstance(target, OpOverload):
        aliases = [result.alias_info for result in target._schema.returns]
        if any(alias is not None and not alias.is_write for alias in aliases):
            return True
        return target.namespace == "aten" and name in _SIZES
    if name in _SIZES or (name in VIEWS and name not in _COPIES):
        return True
    # Arithmetic of Python's own is on sizes.
    return getattr(target, "__module__", "") == operator.add.__module__


def _is_constant(node: Any) -> bool:
    """Whether a value is a constant, or a view of one."""
    while isinstance(node, fx.Node) and node.op != "get_attr":
        if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
            return False
        if not _moves_nothing(node, operator_name(node) or str(node.target)):
            return False
        node = node.all_input_nodes[0]
    return isinstance(node, fx.Node)


class _Apart:
    """A graph that is run one operator after the other, with what each took so far."""

    def __init__(self, graph: fx.GraphModule, clock: Callable[[], int]) -> None:
        self._graph, self._clock = graph, clock
        self._nodes = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
        self._inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self._constants = {
            node: operator.attrgetter(str(node.target))(graph)
            for node in self._nodes
            if node.op == "get_attr"
        }
        self._nodes = [node for node in self._nodes if node.op != "get_attr"]
        self.kinds: Mapping[fx.Node, Kind] = {node: kind_of(node) for node in self._nodes}
        self._last = _last_reads(self._nodes)
        self._small = torch.zeros(1)
        self.forget()

    def forget(self) -> None:
        """Lets go of what was timed."""
        self._took: dict[fx.Node, list[int]] = {node: [] for node in self._nodes}
        self._cheapest: dict[Callable[..., Any], list[int]] = {_OVERLOAD: [], _BINDING: []}

    def run(self, flat: Sequence[Tensor]) -> None:
        """Run one batch, and note what each operator took."""
        clock, values = self._clock, dict(self._constants)
        values.update(zip(self._inputs, flat, strict=True))
        for node in self._nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            function = self._function(node)
            start = clock()
            result = function(*args, **kwargs)
            self._took[node].append(clock() - start)
            values[node] = result
            # As a call would: memory that is let go is taken again while it is warm.
            for dead in self._last.get(node, ()):
                values.pop(dead, None)
        for function, taken in self._cheapest.items():
            start = clock()
            function(self._small)
            taken.append(clock() - start)

    def own(self) -> dict[fx.Node, float]:
        """The seconds of each operator beyond those of the cheapest call."""
        least = {function: float(np.median(taken)) for function, taken in self._cheapest.items()}
        return {
            node: max(0.0, float(np.median(took)) - least[_entry(node)]) / 1e9
            for node, took in self._took.items()
        }

    def _function(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            return self._graph.get_submodule(str(node.target))
        if node.op == "call_method":
            return _method(str(node.target))
        return cast("Callable[..., Any]", node.target)


def _entry(node: fx.Node) -> Callable[..., Any]:
    """The cheapest call by the entry that a node is called by."""
    return _OVERLOAD if isinstance(node.target, OpOverload) else _BINDING


def _method(name: str) -> Callable[..., Any]:
    return lambda first, *args, **kwargs: getattr(first, name)(*args, **kwargs)


def _last_reads(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """What no call reads any more after each node; answers are let go at once."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        last[node] = node
        for read in node.all_input_nodes:
            last[read] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for value, node in last.items():
        if value.op not in ("placeholder", "get_attr"):
            found.setdefault(node, []).append(value)
    return found
