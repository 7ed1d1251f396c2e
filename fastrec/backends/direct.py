"""A captured graph as one Python function with its constants bound: the least overhead per call torch allows.

Calling a `GraphModule` costs a module call, an attribute walk per constant, and the dispatcher's generic entry
per node. Here constants are bound once, and a node is called through torch's own binding of the same operator
(`torch.embedding` for `aten.embedding.default`), which parses its arguments in about half the time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ..graph import copy_graph
from .coded_rows import QUICK

__all__ = ["direct", "quickened", "rows_of", "same_answer"]

Run = Callable[..., tuple[Tensor, ...]]
_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_MANY_ROWS = 1024
_GATHERED = (torch.float32, torch.float16)
_METHODS = ("view", "expand", "to", "contiguous", "repeat", "type_as", "index_fill")


def direct(gm: fx.GraphModule, example: tuple[Tensor, ...]) -> Run:
    """A function of the graph's flat inputs giving its tuple of outputs, bit for bit as `gm` gives them.

    `example` is run once; each node is called both ways, and keeps its ATen overload if the answers differ.
    Constants are shared, without their `requires_grad`, so that no autograd graph grows from them.

    Raises whatever the graph itself raises on `example`.
    """
    gm = quickened(gm, example)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    constants: list[Any] = []
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            copies[node] = graph.placeholder(f"constant_{len(constants)}")
            value = operator.attrgetter(node.target)(gm)
            constants.append(value.detach() if isinstance(value, Tensor) else value)
    for node in gm.graph.nodes:
        if node.op != "get_attr":
            copies[node] = graph.node_copy(node, lambda old: copies[old])
    module = fx.GraphModule(torch.nn.Module(), graph)
    # Not through `nn.Module.__call__`, whose hook checks cost more than a small node.
    return partial(type(module).forward, module, *constants)


def quickened(gm: fx.GraphModule, example: tuple[Tensor, ...]) -> fx.GraphModule:
    """The graph with each operator called by its quickest entry; `gm` is not changed, `example` is run once."""
    chooser = _Chooser(gm)
    with torch.no_grad():
        chooser.run(*example)
    names = {node.name for node in chooser.quick}
    made = copy_graph(gm)
    for node in made.graph.nodes:
        call = _binding(node) if node.name in names else None
        if call is not None:
            node.target, node.args, node.kwargs = call
    made.recompile()
    return made


def rows_of(table: Tensor, ids: Tensor) -> Tensor:
    """The rows `table[ids]`: table (V, d), ids of any shape S, result (*S, d).

    Many rows are gathered as bags of one row each, a kernel that prefetches: 2.5 times as fast at 26,000 rows
    of 64 bytes, 2.2 times at 32 bytes of float16. It costs some 5 us more to enter, so few rows take the plain lookup.
    """
    count = ids.numel()
    if count < _MANY_ROWS or table.dtype not in _GATHERED:
        return torch.embedding(table, ids)
    starts = torch.arange(count, dtype=ids.dtype)
    rows = torch.embedding_bag(table, ids.reshape(-1), starts, False, 0, False, None, False)[0]
    return rows.view(*ids.shape, table.shape[1])


def same_answer(left: Any, right: Any) -> bool:
    """Whether two results agree bit for bit (NaN equals NaN): in structure, shape, type and value."""
    if isinstance(left, Tensor):
        if not isinstance(right, Tensor) or left.shape != right.shape or left.dtype != right.dtype:
            return False
        return bool(((left == right) | ((left != left) & (right != right))).all())
    if isinstance(left, (tuple, list)):
        pairs = isinstance(right, (tuple, list)) and len(left) == len(right)
        return pairs and all(same_answer(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


class _Chooser(fx.Interpreter):
    """Runs a graph, noting the nodes that torch's own binding computes alike."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.quick: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        call = _binding(n) if n.op == "call_function" else None
        if call is not None:
            target = call[0]
            args, kwargs = fx.node.map_arg(call[1:], lambda arg: self.env[arg])
            try:
                twin = target(*args, **kwargs)
            except (TypeError, ValueError, RuntimeError, IndexError):
                # The binding does not take these arguments; the overload just did.
                return result
            if same_answer(result, twin):
                self.quick.add(n)
        return result


def _binding(node: fx.Node) -> _Call | None:
    """The same call through torch's own binding, or None where it has no such twin."""
    target = node.target
    if target in QUICK:
        return QUICK[target], node.args, {}
    # An operator that writes to its argument cannot be run twice to compare.
    if not isinstance(target, OpOverload) or target.namespace != "aten" or target._schema.is_mutable:
        return None
    if target is torch.ops.aten.embedding.default:
        return rows_of, node.args[:2], {}
    name = target._schema.name.removeprefix("aten::")
    args, kwargs = node.args, dict(node.kwargs)
    if name == "sym_size":
        return torch.Tensor.size, args, kwargs
    if name == "slice":
        return _slice(args, kwargs)
    if name in _METHODS:
        return getattr(torch.Tensor, name), args, kwargs
    for home in (torch._C._VariableFunctions, torch._C._nn):
        twin = getattr(home, name, None)
        if twin is not None and not name.startswith("_"):
            return getattr(torch, name, twin) if home is torch._C._VariableFunctions else twin, args, kwargs
    return None


def _slice(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call | None:
    """`aten.slice(x, dim, start, end, step)` as an index expression."""
    names = ("self", "dim", "start", "end", "step")
    given = {"dim": 0, "start": None, "end": None, "step": 1} | dict(zip(names, args, strict=False)) | kwargs
    dim = given["dim"]
    if not isinstance(dim, int) or dim < 0:
        return None
    piece = slice(given["start"], given["end"], given["step"])
    return operator.getitem, (given["self"], (*[slice(None)] * dim, piece)), {}
