"""Counting: the work in one call of a captured graph, read off the sizes of its values. Nothing is run.

Clocks differ from machine to machine and from run to run; these integers do not, so a change can be judged by them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import SymInt, Tensor, fx
from torch._ops import OpOverload

from .errors import InputError
from .graph import constant, operator_name, value
from .program import Program

__all__ = ["Cost", "cost", "costs", "per_candidate", "per_request", "table_bytes"]

# Sizes at which the growth per row is read; it is the same at all but the smallest.
_MANY = 1024

# Products whose result has one element per sum over the last dimension of argument number ...
_SUMS = {
    **dict.fromkeys(("linear", "int8_linear", "mm", "bmm", "matmul", "mv", "dot", "vdot", "inner"), 0),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), 1),
}
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "int8_convolution")
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_ROWS = ("embedding", "lookup_int8", "lookup_int4")
_BAGS = ("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")


@dataclass(frozen=True)
class Cost:
    """What a call takes: multiply-adds of matrix products, bytes, operator calls, and rows looked up in tables.

    `bytes` are those of the rows looked up, of each constant that a product reads, and of every result written;
    `of_codes` those multiply-adds that 8-bit integers take part in.
    """

    multiply_adds: int = 0
    bytes: int = 0
    calls: int = 0
    lookups: int = 0
    of_codes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.multiply_adds + other.multiply_adds,
            self.bytes + other.bytes,
            self.calls + other.calls,
            self.lookups + other.lookups,
            self.of_codes + other.of_codes,
        )


def cost(program: Program, rows: int) -> Cost:
    """What one call of a captured program takes at `rows` rows.

    A product that sums `k` terms for each of `m` results has `k m` multiply-adds; views (expands, reshapes, ...)
    are free, and so is arithmetic on sizes. A size that depends on values counts as the most it can be where it is
    picked from a request (the positions that are not padding), otherwise as `rows`.

    Raises `InputError` for a program that was not captured. Cost: milliseconds.

    Example:
        >>> import torch
        >>> from fastrec.capture import capture
        >>> tower = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).eval()
        >>> captured = capture(Program.read(tower, torch.randn(4, 8)))
        >>> cost(captured, 100)
        Cost(multiply_adds=14400, bytes=13844, calls=3, lookups=0, of_codes=0)
    """
    return sum((found for _, found in costs(program, rows)), Cost())


def costs(program: Program, rows: int) -> Iterator[tuple[fx.Node, Cost]]:
    """Each operator call of a captured program that is no view, with what it takes at `rows` rows.

    A constant is counted at the first product that reads it. Raises `InputError` as `cost` does.
    """
    if not isinstance(program.model, fx.GraphModule):
        raise InputError(
            f"cost counts a captured program, got {type(program.model).__name__}: capture it first"
        )
    sizes = _Sizes(program, rows)
    read: set[Any] = set()
    for node in program.model.graph.nodes:
        if _is_work(node):
            products = _products(node, sizes)
            rows_read, bytes_read = _lookups(node, sizes)
            written = sum(sizes.bytes(tensor) for tensor in _tensors(node))
            constants = _constants(node) - read if products else set()
            read |= constants
            held = sum(sizes.bytes(value(constant)) for constant in constants)
            of_codes = products if operator_name(node).startswith("int8_") else 0
            yield node, Cost(products, bytes_read + held + written, 1, rows_read, of_codes)


def per_candidate(program: Program) -> float:
    """Multiply-adds that one more row adds to a call of many: `(c(2 n) - c(n)) / n`.

    Example:
        >>> import torch
        >>> from fastrec.capture import capture
        >>> captured = capture(Program.read(torch.nn.Linear(8, 16).eval(), torch.randn(4, 8)))
        >>> per_candidate(captured), per_request(captured)
        (128.0, 0.0)
    """
    return (cost(program, 2 * _MANY).multiply_adds - cost(program, _MANY).multiply_adds) / _MANY


def per_request(program: Program) -> float:
    """Multiply-adds of a call whatever its number of rows: `2 c(n) - c(2 n)`."""
    return float(2 * cost(program, _MANY).multiply_adds - cost(program, 2 * _MANY).multiply_adds)


def table_bytes(gm: fx.GraphModule) -> int:
    """Bytes of the tables of a graph, in whatever form: of every constant that rows are looked up in, each memory once."""
    held = [constant(gm, node.args[0]) for node in gm.graph.nodes if _ids(node) is not None]
    storages = [tensor.untyped_storage() for tensor in held if tensor is not None]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class _Sizes:
    """The sizes of a graph's values at a number of rows."""

    def __init__(self, program: Program, rows: int) -> None:
        self._rows = rows
        self._known: dict[Any, int] = {}
        assert isinstance(program.model, fx.GraphModule)
        inputs = [node for node in program.model.graph.nodes if node.op == "placeholder"]
        for node, feature, example in zip(inputs, program.layout.features, program.batch, strict=True):
            if feature.growing is None:
                continue
            size = value(node).shape[feature.growing]
            wanted = {
                "bounds": rows + 1,
                "lengths": feature.keys * rows,
                "values": len(example) * rows // (program.layout.rows or 1),
            }.get(feature.role, rows)
            if isinstance(size, SymInt):
                self._bind(size.node.expr, wanted)
        for node in program.model.graph.nodes:
            if operator_name(node) == "nonzero":
                size, whole = value(node).shape[0], value(node.all_input_nodes[0]).numel()
                if isinstance(size, SymInt) and isinstance(whole, int):
                    self._bind(size.node.expr, whole)

    def _bind(self, expression: Any, wanted: int) -> None:
        """The symbol in `a symbol + b = wanted`, which is how the exporter writes sizes that are related."""
        expression = expression.subs(self._known)
        for symbol in expression.free_symbols:
            start = expression.subs({symbol: 0})
            self._known[symbol] = int((wanted - start) / (expression.subs({symbol: 1}) - start))

    def _size(self, size: Any) -> int:
        if not isinstance(size, SymInt):
            return int(size)
        expression = size.node.expr.subs(self._known)
        return int(expression.subs(dict.fromkeys(expression.free_symbols, self._rows)))

    def shape(self, node: Any) -> tuple[int, ...]:
        """The sizes of a node's tensor."""
        return tuple(map(self._size, value(node).shape))

    def bytes(self, tensor: Tensor) -> int:
        """The bytes of a fake tensor's elements."""
        return math.prod(map(self._size, tensor.shape)) * tensor.dtype.itemsize


def _is_work(node: fx.Node) -> bool:
    """Whether the node computes or copies elements: it gives tensors, and not views of its arguments."""
    if not isinstance(node.target, OpOverload) or not _tensors(node):
        return False
    results = [result.alias_info for result in node.target._schema.returns]
    return not any(alias is not None and not alias.is_write for alias in results)


def _tensors(node: fx.Node) -> list[Tensor]:
    found = node.meta["val"]
    return [
        one for one in (found if isinstance(found, (tuple, list)) else (found,)) if isinstance(one, Tensor)
    ]


def _products(node: fx.Node, sizes: _Sizes) -> int:
    """The multiply-adds of a matrix product, 0 for any other call."""
    name, args = operator_name(node), node.args
    if name in _SUMS:
        return math.prod(sizes.shape(node)) * sizes.shape(args[_SUMS[name]])[-1]
    if name in _CONVOLUTIONS:
        filters = math.prod(sizes.shape(args[1])[1:])
        transposed = name == "convolution" and args[6]
        return math.prod(sizes.shape(args[0] if transposed else node)) * filters
    if name.startswith("conv_transpose"):
        return math.prod(sizes.shape(args[0])) * math.prod(sizes.shape(args[1])[1:])
    if "scaled_dot_product" in name:
        query, keys, values = (sizes.shape(arg) for arg in args[:3])
        return math.prod(query[:-1]) * keys[-2] * (query[-1] + values[-1])
    if name == "bilinear":
        return math.prod(sizes.shape(node)) * math.prod(sizes.shape(args[2])[1:])
    if name == "tensordot":
        left = sizes.shape(args[0])
        return math.prod(sizes.shape(node)) * math.prod(left[axis] for axis in args[2])  # type: ignore[union-attr, index, misc]  # an argument of a node is of any type
    if name == "einsum":
        return _einsum(str(args[0]), [sizes.shape(arg) for arg in args[1]])  # type: ignore[union-attr]  # an argument of a node is of any type
    if name in _RECURRENT and isinstance(args[2], (tuple, list)):
        weights = [shape for arg in args[2] if len(shape := sizes.shape(arg)) == 2]
        return math.prod(sizes.shape(args[0])[:-1]) * sum(map(math.prod, weights))
    return 0


def _einsum(equation: str, shapes: list[tuple[int, ...]]) -> int:
    """Operands are joined from left to right; what neither a later one nor the result has is summed on the way."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    letters: list[list[str]] = []
    sizes: dict[str, int] = {}
    for term, shape in zip(inputs.split(","), shapes, strict=True):
        front, dots, back = term.partition("...")
        # Dimensions that an ellipsis stands for are the same from the right.
        hidden = [f".{k}" for k in range(len(shape) - len(front) - len(back), 0, -1)] if dots else []
        letters.append([*front, *hidden, *back])
        for letter, size in zip(letters[-1], shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    every = [letter for mine in letters for letter in mine]
    kept = set(result) | {letter for letter in every if letter[0] == "."}
    if not arrow:
        kept |= {letter for letter in every if every.count(letter) == 1}
    total, joined = 0, set(letters[0])
    for k, mine in enumerate(letters[1:], 1):
        later = kept.union(*letters[k + 1 :])
        together = (joined & later.union(mine)) | (set(mine) & later.union(joined))
        joined = together & later
        if joined != together:  # without a sum it multiplies element by element
            total += math.prod(sizes[letter] for letter in together)
    return total


def _lookups(node: fx.Node, sizes: _Sizes) -> tuple[int, int]:
    """How many rows of a table a call looks up, and their bytes."""
    ids = _ids(node)
    if ids is None:
        return 0, 0
    table: Any = node.args[0]
    count = math.prod(sizes.shape(ids))
    return count, count * math.prod(sizes.shape(table)[1:]) * value(table).dtype.itemsize


def _ids(node: fx.Node) -> Any:
    """The ids by which a call looks rows up in its first argument, if it does."""
    name, args = operator_name(node), cast("tuple[Any, ...]", node.args)
    if name in _ROWS or name in _BAGS:
        return args[1]
    if args and isinstance(args[0], fx.Node) and args[0].op == "get_attr":
        if name == "index_select" and args[1] == 0:
            return args[2]
        if name == "index" and len(args[1]) == 1:
            return args[1][0]
    return None


def _constants(node: fx.Node) -> set[fx.Node]:
    """The constants among a call's arguments, seen through views."""
    found = set()
    for argument in node.all_input_nodes:
        while argument.op == "call_function" and not _is_work(argument) and argument.all_input_nodes:
            argument = argument.all_input_nodes[0]
        if argument.op == "get_attr":
            found.add(argument)
    return found
