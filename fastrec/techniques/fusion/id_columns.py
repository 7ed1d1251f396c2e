"""How the ids of a lookup come about: which columns of which input, through which elementwise steps.

    ids = step_k(... step_1(base[:, columns]))      base (N, K), ids (N, len(columns)), or (N,) for one column

Ids cut from one packed matrix, ids given as separate vectors and ids of shape (N, 1) all read as columns, so
that the ids of many lookups are taken in one go: the block once, the steps once. Column choice commutes with
elementwise steps, so a step may stand before or after the cut. Steps that differ by an integer only (`id %
buckets_f`) become one step with a constant of one integer per column.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit, is_call, value

__all__ = ["Column", "IdReader", "Ids", "Size", "Step", "identity", "pack_ids", "size"]

aten = torch.ops.aten
Size: TypeAlias = int | str
_END = 2**63 - 1

# elementwise steps with number arguments only, and the form that takes one integer per column
_STEPS: dict[Any, Any] = {
    aten.to.dtype: None,
    aten.add.Tensor: aten.add.Tensor,
    aten.sub.Tensor: aten.sub.Tensor,
    aten.mul.Tensor: aten.mul.Tensor,
    aten.remainder.Scalar: aten.remainder.Tensor,
    aten.clamp.default: aten.clamp.Tensor,
    aten.clamp_min.default: aten.clamp_min.Tensor,
    aten.clamp_max.default: aten.clamp_max.Tensor,
    aten.floor_divide.default: None,
    aten.abs.default: None,
    aten.round.default: None,
    aten.floor.default: None,
    aten.trunc.default: None,
}
_SAME = (
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.clone.default,
)
_RESHAPES = (
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
)
_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)


def size(dim: int | torch.SymInt) -> Size:
    """A dimension as something that compares: its number, or the symbol's expression."""
    return dim if isinstance(dim, int) else str(dim.node.expr)


def identity(tensor: Tensor) -> tuple[Any, ...]:
    """What makes two tensors the same memory, read the same way."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


@dataclass(frozen=True)
class Step:
    """One elementwise step: the op, and its arguments after the first."""

    target: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    @property
    def key(self) -> tuple[Any, str]:
        """What makes two steps the same one (1 and 1.0 differ)."""
        return self.target, repr((self.args, self.kwargs))


@dataclass(frozen=True)
class Column:
    """One column of ids: `steps(base[:, index])`; `index` is None where the base itself is the vector."""

    base: fx.Node
    index: int | None
    steps: tuple[Step, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two columns the same values."""
        return self.base, self.index, tuple(step.key for step in self.steps)

    @property
    def packed(self) -> bool:
        """Whether it is cut from a matrix of several columns."""
        return self.index is not None and value(self.base).shape[1] != 1


@dataclass(frozen=True)
class Ids:
    """The ids of a lookup: their columns (one opaque column for three and more axes) and their shape."""

    node: fx.Node
    columns: tuple[Column, ...]
    shape: tuple[Size, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two sets of ids the same values, (N,) and (N, 1) alike."""
        return tuple(column.key for column in self.columns)

    @property
    def rows(self) -> Size | None:
        """N where the ids are one column of N, shape (N,) or (N, 1); else None."""
        return self.shape[0] if len(self.shape) == 1 or self.shape[1:] == (1,) else None


class IdReader:
    """Reads ids of one graph; nodes that compute the same value read as the same.

    `written` are the nodes whose memory the graph writes into: they are like no other node.
    """

    def __init__(self, gm: fx.GraphModule, written: Set[fx.Node] = frozenset()) -> None:
        self._gm = gm
        self._written = written
        self._first: dict[Any, fx.Node] = {}
        self._numbered: dict[fx.Node, fx.Node] = {}
        for node in gm.graph.nodes:
            self._numbered[node] = self._number(node)

    def read(self, node: fx.Node) -> Ids:
        """The columns of `node`, a tensor of ids."""
        shape = tuple(size(dim) for dim in value(node).shape)
        return Ids(node, self._columns(node), shape)

    def _number(self, node: fx.Node) -> fx.Node:
        """The first node of the graph that computes what `node` computes."""
        if node.op == "get_attr":
            tensor = constant(self._gm, node)
            return node if tensor is None else self._first.setdefault(identity(tensor), node)
        if node.op != "call_function" or node in self._written:
            return node
        source = _unchanged(node)
        if source is not None:
            return self._numbered[source]
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            return node
        key = (node.target, self._plain(node.args), self._plain(dict(node.kwargs)))
        return self._first.setdefault(key, node)

    def _plain(self, arg: Any) -> Any:
        """An argument as something hashable, nodes by their number, 1 and 1.0 and True apart."""
        if isinstance(arg, fx.Node):
            return self._numbered[arg]
        if isinstance(arg, (list, tuple)):
            return tuple(self._plain(item) for item in arg)
        if isinstance(arg, dict):
            return tuple((name, self._plain(item)) for name, item in sorted(arg.items()))
        return type(arg).__name__, repr(arg)

    def _columns(self, node: fx.Node) -> tuple[Column, ...]:
        node = self._numbered[node]
        shape = value(node).shape
        opaque: tuple[Column, ...] = (Column(node, None, ()),)
        if len(shape) == 2 and isinstance(shape[1], int):
            opaque = tuple(Column(node, index, ()) for index in range(shape[1]))
        if node.op != "call_function" or not node.args:
            return opaque
        source = node.args[0]
        if not isinstance(source, fx.Node):
            return opaque
        if node.target in _STEPS and _numbers(node.args[1:], node.kwargs):
            step = Step(node.target, tuple(node.args[1:]), tuple(sorted(node.kwargs.items())))
            return tuple(replace(column, steps=(*column.steps, step)) for column in self._columns(source))
        cut = self._cut(node, source)
        return opaque if cut is None else cut

    def _cut(self, node: fx.Node, source: fx.Node) -> tuple[Column, ...] | None:
        """The columns that `node` cuts from `source`, None where it is no such cut."""
        parent: Any = source
        if is_call(node, operator.getitem) and is_call(source, *_SPLITS, aten.unbind.int):
            parent = source.args[0]
        if not isinstance(parent, fx.Node) or not isinstance(parent.meta.get("val"), Tensor):
            return None
        given = value(parent).shape
        if is_call(node, *_RESHAPES):
            before, after = ([size(dim) for dim in t.shape] for t in (value(source), value(node)))
            vector = before[:1] == after[:1] and before[1:] in ([], [1]) and after[1:] in ([], [1])
            return self._columns(source) if vector else None
        if len(given) != 2 or not isinstance(given[1], int):
            return None
        columns = self._columns(parent)
        if is_call(node, operator.getitem) and is_call(source, aten.unbind.int):
            return (columns[_int(node, 1)],) if _axis(source, 1) == 1 else None
        if is_call(node, operator.getitem) and is_call(source, *_SPLITS):
            if _axis(source, 2) != 1:
                return None
            piece = _int(node, 1)
            widths = [part.shape[1] for part in source.meta["val"]]
            first = sum(widths[:piece])
            return columns[first : first + widths[piece]]
        if is_call(node, aten.select.int) and _axis(node, 1) == 1 and isinstance(node.args[2], int):
            return (columns[node.args[2]],)
        if is_call(node, aten.slice.Tensor) and _axis(node, 1) == 1:
            bounds: tuple[Any, ...] = (*node.args[2:], *(None, None, 1)[len(node.args) - 2 :])
            start, end, step = bounds
            if all(bound is None or isinstance(bound, int) for bound in bounds):
                return columns[start:end:step]
        if is_call(node, aten.index_select.default) and _axis(node, 1) == 1:
            return self._taken(columns, node.args[2])
        if is_call(node, aten.index.Tensor) and isinstance(node.args[1], (list, tuple)):
            chosen = node.args[1]
            if len(chosen) == 2 and chosen[0] is None:
                return self._taken(columns, chosen[1])
        return None

    def _taken(self, columns: tuple[Column, ...], index: Any) -> tuple[Column, ...] | None:
        tensor = constant(self._gm, index) if isinstance(index, fx.Node) else None
        if tensor is None or tensor.ndim != 1 or tensor.dtype not in (torch.int32, torch.int64):
            return None
        return tuple(columns[position] for position in tensor.tolist())


def pack_ids(
    gm: fx.GraphModule, columns: Sequence[Column], shifts: Sequence[int]
) -> tuple[fx.Node, list[int]]:
    """Emits ids (N, C) = columns + shifts at the graph's insertion point.

    Gives the node and where each of the given columns stands in it: columns of one packed matrix stand in the
    matrix's order, so that most often nothing is permuted.
    """
    parts: dict[Any, list[int]] = {}
    for position, column in enumerate(columns):
        parts.setdefault(_part(column), []).append(position)
    order: list[int] = []
    blocks: list[fx.Node] = []
    for members in parts.values():
        members.sort(key=lambda position: columns[position].index or 0)
        order.extend(members)
        block = _block(gm, [columns[position] for position in members])
        blocks.append(_stepped(gm, block, [columns[position].steps for position in members]))
    if len({value(block).dtype for block in blocks}) > 1:
        blocks = [_as_int64(gm, block) for block in blocks]
    packed = blocks[0] if len(blocks) == 1 else emit(gm, aten.cat.default, (blocks, 1))
    if any(shifts):
        # int64 ids + int32 ids promote to int64: no cast of their own
        constant_node = _integers(gm, "row_offsets", [shifts[position] for position in order])
        packed = emit(gm, aten.add.Tensor, (packed, constant_node))
    places = [0] * len(order)
    for place, position in enumerate(order):
        places[position] = place
    return packed, places


def _part(column: Column) -> tuple[Any, ...]:
    """Columns with the same part are taken and stepped together."""
    base = value(column.base)
    source: Any = column.base if column.packed else ("vectors", base.ndim, base.dtype)
    return source, _signature(base.dtype, column.steps)


def _signature(dtype: torch.dtype, steps: Iterable[Step]) -> tuple[Any, ...]:
    """The steps with the integers that may differ from column to column left out."""
    signature: list[Any] = []
    for step in steps:
        free = _STEPS[step.target] is not None and dtype == torch.int64 and not step.kwargs
        if free and all(type(arg) is int for arg in step.args):
            signature.append((step.target, len(step.args)))
        else:
            signature.append(step.key)
        if step.target is aten.to.dtype:
            dtype = step.args[0] if step.args else torch.int32
    return tuple(signature)


def _block(gm: fx.GraphModule, columns: list[Column]) -> fx.Node:
    """The columns before their steps, (N, C), in the order given."""
    first = columns[0].base
    if not columns[0].packed:
        bases = [column.base for column in columns]
        if value(first).ndim == 1:
            return emit(gm, aten.stack.default, (bases, 1))
        return first if len(bases) == 1 else emit(gm, aten.cat.default, (bases, 1))
    indices = [column.index or 0 for column in columns]
    if indices == list(range(value(first).shape[1])):
        return first
    if indices == list(range(indices[0], indices[0] + len(indices))):
        return emit(gm, aten.slice.Tensor, (first, 1, indices[0], indices[-1] + 1))
    return emit(gm, aten.index_select.default, (first, 1, _integers(gm, "id_columns", indices)))


def _stepped(gm: fx.GraphModule, block: fx.Node, chains: list[tuple[Step, ...]]) -> fx.Node:
    """The steps of all columns, one op each; integers that differ become a constant of one per column."""
    for steps in zip(*chains, strict=True):
        target, args = steps[0].target, steps[0].args
        if any(step.key != steps[0].key for step in steps):
            target = _STEPS[target]
            by_argument = zip(*(step.args for step in steps), strict=True)
            args = tuple(_integers(gm, "id_step", list(numbers)) for numbers in by_argument)
        block = emit(gm, target, (block, *args), dict(steps[0].kwargs))
    return block


def _as_int64(gm: fx.GraphModule, block: fx.Node) -> fx.Node:
    return block if value(block).dtype == torch.int64 else emit(gm, aten.to.dtype, (block, torch.int64))


def _integers(gm: fx.GraphModule, name: str, numbers: list[int]) -> fx.Node:
    return add_constant(gm, name, torch.tensor(numbers, dtype=torch.int64))


def _unchanged(node: fx.Node) -> fx.Node | None:
    """The node whose value `node` repeats, None where it computes something."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
        return None
    if is_call(node, *_SAME):
        return source
    if not isinstance(source.meta.get("val"), Tensor):
        return None
    before, after = value(source), value(node)
    if [size(dim) for dim in before.shape] != [size(dim) for dim in after.shape]:
        return None
    if is_call(node, *_RESHAPES, aten.expand.default):
        return source
    if is_call(node, aten.to.dtype) and before.dtype == after.dtype:
        return source
    if is_call(node, aten.slice.Tensor):
        start, step = (*node.args[2:], *(0, _END, 1)[len(node.args) - 2 :])[::2]
        return source if start in (None, 0) and step == 1 else None
    return None


def _numbers(args: Iterable[Any], kwargs: dict[str, Any]) -> bool:
    """Whether the arguments hold no node, so that a step is the same for every column."""
    plain = (bool, int, float, torch.dtype, type(None))
    return all(isinstance(arg, plain) for arg in (*args, *kwargs.values()))


def _axis(node: fx.Node, position: int) -> int:
    """The axis argument of `node`, counted from the front of its first argument's tensor."""
    axis = _int(node, position) if len(node.args) > position else node.kwargs.get("dim", 0)
    source = node.args[0]
    assert isinstance(source, fx.Node) and isinstance(axis, int)
    return axis % value(source).ndim


def _int(node: fx.Node, position: int) -> int:
    number = node.args[position]
    assert isinstance(number, int)
    return number
