"""A linear map of a sum, of a join, of what is repeated, is a sum of smaller linear maps (A1, A7).

    W cat([u, c]) + b       =  W_c c + (W_u u + b)          u the request's: its part is the bias
    W (x ± y)               =  W x ± W y
    W expand(x)             =  expand(W x)
    W x[..., order]         =  W[:, order^-1] x
    W cat([u, c], k)        =  cat([W u, W c], k)                   joined along another dimension: u's positions once
    W view(x)              =  view(W x)                      rows end to end, as many libraries give them to a tower
    W cat([q, k, q - k, q * k])  =  (W_q + W_m) q + (W_k - W_m) k + W_p (q * k)      q (N, 1, d), k (1, T, d)

The argument is opened into terms as long as that makes less of it: each term is a tensor no larger than it must be
and the columns of W it meets, equal tensors met by the sum of their columns. Terms of one size stay one product. The
activation unit of DIN is the last line, in whatever order and of whichever of the four its author joined it.

What depends on no input becomes a part of the bias, be it a single column. Weights are added in float64. When it does not
apply: to weights that are not constant; where the terms are not less than four fifths of the argument at 64 candidates; to a graph
that writes in place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, ancestors, constant, emit, is_call, operator_name, value
from ..base import Change
from .join import take
from .joins import Joins
from .once import dimension
from .purity import writes

__all__ = ["split_linears"]

aten = torch.ops.aten
_CANDIDATES = 64
_WORTH = 0.8


@dataclass
class _Term:
    """A tensor (..., d) and the columns (h, d) it meets."""

    leaf: fx.Node
    columns: Tensor
    shape: tuple[Any, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.shape = tuple(value(self.leaf).shape[:-1])

    @property
    def size(self) -> int:
        """Elements of the leaf at `_CANDIDATES` rows."""
        return math.prod(_sized(n) for n in value(self.leaf).shape)


def split_linears(gm: fx.GraphModule) -> list[Change]:
    """Opens the arguments of linear maps; edits `gm` in place. Adds the columns of the weights apart."""
    if writes(gm):
        return []
    joins = Joins(gm)
    changes = []
    for node in list(gm.graph.nodes):
        if is_call(node, aten.linear.default):
            change = _split(gm, joins, node) or _positions(gm, joins, node)
            changes += [] if change is None else [change]
    return changes


def _split(gm: fx.GraphModule, joins: Joins, node: fx.Node) -> Change | None:
    x, weight = node.args[0], constant(gm, node.args[1])
    bias: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if weight is None or weight.ndim != 2 or not isinstance(x, fx.Node) or not weight.is_floating_point():
        return None
    x, rows = _end_to_end(x)
    terms = _merged(_Opening(joins, _full(x)).terms(x, weight.double(), 1))
    if (len(terms) < 2 and (not terms or terms[0].leaf is x)) or not _pays(terms, x):
        return None
    groups: dict[tuple[str, ...], list[_Term]] = {}
    for term in sorted(terms, key=lambda t: t.size):
        groups.setdefault(tuple(map(str, term.shape)), []).append(term)
    with gm.graph.inserting_before(node):
        total: fx.Node | None = None
        added = 0
        for members in groups.values():
            total, bytes_ = _product(gm, node, members, weight.dtype, bias if total is None else None, total)
            added += bytes_
        assert total is not None
        sizes = _sizes(total, (*value(x).shape[:-1], len(weight)))
        if sizes is None:
            return None
        if sizes != [-1] * len(sizes):
            total = emit(gm, aten.expand.default, (total, sizes))
        if rows is not None:
            total = emit(gm, aten.reshape.default, (total, [*rows, len(weight)]))
    node.replace_all_uses_with(total)
    gm.graph.erase_node(node)
    shapes = ", ".join(f"{tuple(value(t.leaf).shape)}" for t in terms)
    return Change("split linears", node.name, f"its argument {tuple(value(x).shape)} as {shapes}", added)


def _pays(terms: list[_Term], x: fx.Node) -> bool:
    """Whether there is enough less to multiply: anything at all where the rest is a constant, which the bias takes."""
    whole = math.prod(_sized(n) for n in value(x).shape)
    left = [term for term in terms if not _is_fixed(term.leaf)]
    if len(left) < len(terms) and len({tuple(map(str, term.shape)) for term in left}) < 2:
        return sum(term.size for term in left) < whole
    return sum(term.size for term in terms) <= _WORTH * whole


def _is_fixed(node: fx.Node) -> bool:
    """Whether it is made of constants alone."""
    sources = (source for call in ancestors([node]) for source in call.all_input_nodes)
    return node.op != "placeholder" and all(source.op != "placeholder" for source in sources)


def _positions(gm: fx.GraphModule, joins: Joins, node: fx.Node) -> Change | None:
    """Positions of a join along another dimension: those of the request at one row."""
    join = joins.read(node)
    if join is None or join.width < (1 - _WORTH) * len(join.order):
        return None
    with gm.graph.inserting_before(node):
        sizes: list[Any] = list(value(join.once).shape)
        sizes[join.rows] = emit(gm, aten.sym_size.int, (join.each, join.rows))
        parts = [emit(gm, aten.expand.default, (join.once, sizes)), join.each]
        made = take(gm, emit(gm, aten.cat.default, (parts, join.axis)), join.axis, join.order)
    node.replace_all_uses_with(made)
    gm.graph.erase_node(node)
    return Change("split linears", node.name, f"{join.width} of {len(join.order)} positions once")


def _end_to_end(x: fx.Node) -> tuple[fx.Node, list[Any] | None]:
    """What an argument is a view of, all its rows end to end, and the sizes of the view in front of the last; itself and None of others."""
    if not is_call(x, aten.view.default, aten.reshape.default, aten._unsafe_view.default):
        return x, None
    source, sizes = x.args
    assert isinstance(source, fx.Node) and isinstance(sizes, list | tuple)
    held, made = value(source).shape, value(x).shape
    same = isinstance(made[-1], int) and str(held[-1:]) == str(made[-1:])
    return (source, list(sizes[:-1])) if same and len(made) < len(held) else (x, None)


def _sizes(made: fx.Node, after: tuple[Any, ...]) -> list[int] | None:
    """What the result is expanded to: -1 where it has its size, None where it would need a size of the batch."""
    before = value(made).shape
    if len(before) != len(after):
        return None
    sizes = [-1 if str(a) == str(b) else b for a, b in zip(before, after, strict=True)]
    return None if any(isinstance(n, torch.SymInt) for n in sizes) else [int(n) for n in sizes]


def _sized(size: Any) -> int:
    return size if isinstance(size, int) else _CANDIDATES


def _full(x: fx.Node) -> list[str]:
    return [str(n) for n in value(x).shape[:-1]]


class _Opening:
    """Opens an argument into terms, each opening taken where it makes less of what it opens."""

    def __init__(self, joins: Joins, full: list[str]) -> None:
        self._joins = joins
        self._full = full

    def terms(self, x: fx.Node, columns: Tensor, depth: int) -> list[_Term]:
        """The terms that stand for `columns @ x`."""
        closed = [_Term(x, columns)]
        opened = self._open(x, columns, depth) if depth < 40 else None
        if opened is None:
            return closed
        merged = _merged(opened)
        return merged if sum(t.size for t in merged) < closed[0].size else closed

    def _open(self, x: fx.Node, columns: Tensor, depth: int) -> list[_Term] | None:
        name = operator_name(x)
        last = value(x).ndim - 1
        if name == "expand" and str(value(x).shape[-1]) == str(value(x.args[0]).shape[-1]):  # type: ignore[arg-type]  # an argument of a node is of any type
            source = x.args[0]
            assert isinstance(source, fx.Node)
            return self.terms(source, columns, depth + 1)
        join = self._joins.read(x)
        if join is not None and join.axis == last:
            parts = columns.new_zeros(len(columns), join.width + int(value(join.each).shape[-1]))
            parts.index_add_(1, torch.tensor(join.order), columns)
            split = (parts[:, : join.width], parts[:, join.width :])
            return [
                term
                for part, mine in zip((join.once, join.each), split, strict=True)
                for term in self.terms(part, mine, depth + 1)
            ]
        if name in ("cat", "concat") and dimension(x, 1) % (last + 1) == last:
            found, start = [], 0
            for part in x.args[0]:  # type: ignore[union-attr]  # an argument of a node is of any type
                assert isinstance(part, fx.Node)
                width = int(value(part).shape[-1])
                found += self.terms(part, columns[:, start : start + width], depth + 1)
                start += width
            return found
        if name in ("add", "sub") and not x.kwargs and len(x.args) == 2:
            sides = [side for side in x.args if isinstance(side, fx.Node)]
            if len(sides) != 2 or any(
                value(s).ndim < 1 or value(s).shape[-1] != value(x).shape[-1] for s in sides
            ):
                return None
            signs = (columns, -columns if name == "sub" else columns)
            return [
                t for side, mine in zip(sides, signs, strict=True) for t in self.terms(side, mine, depth + 1)
            ]
        if name == "neg":
            assert isinstance(x.args[0], fx.Node)
            return self.terms(x.args[0], -columns, depth + 1)
        return None


def _merged(terms: list[_Term]) -> list[_Term]:
    """Equal tensors meet the sum of their columns."""
    found: dict[fx.Node, _Term] = {}
    for term in terms:
        if term.leaf in found:
            found[term.leaf] = _Term(term.leaf, found[term.leaf].columns + term.columns)
        else:
            found[term.leaf] = term
    return list(found.values())


def _product(
    gm: fx.GraphModule,
    node: fx.Node,
    members: list[_Term],
    dtype: torch.dtype,
    bias: Any,
    total: fx.Node | None,
) -> tuple[fx.Node, int]:
    """`total` plus the linear map of these terms, which are of one size; the smaller sum is the bias where it can be."""
    leaf = members[0].leaf
    if len(members) > 1:
        leaf = emit(gm, aten.cat.default, ([member.leaf for member in members], value(leaf).ndim - 1))
    columns = torch.cat([member.columns for member in members], 1).to(dtype)
    weight = add_constant(gm, f"{node.name}_weight", columns)
    if total is not None and all(isinstance(n, int) and n == 1 for n in value(total).shape[:-1]):
        bias, total = emit(gm, aten.reshape.default, (total, [value(total).shape[-1]])), None
    made = emit(gm, aten.linear.default, (leaf, weight) if bias is None else (leaf, weight, bias))
    if total is not None:
        made = emit(gm, aten.add.Tensor, (made, total))
    return made, columns.nbytes
