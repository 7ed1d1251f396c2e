"""Fields cut out of one gather and joined again are a piece of the gather.

    G (N, F, w),  p_f = G[:, f, a:b] (N, b-a)
    stack([p_i, ..., p_j], 1)  =  G[:, i:j+1, a:b]                      consecutive fields
    stack([x, p_i, ..., p_j], 1)  =  cat([x[:, None], G[:, i:j+1, a:b]], 1)
    cat([p_i, ..., p_j], 1)    =  flatten(G[:, i:j+1, a:b], 1)
    p_i + ... + p_j            =  sum(G[:, i:j+1, a:b], 1)
    the same of fields in another order: of G[:, (f_1, ..., f_k), a:b], one selection in place of k cuts
    cat([x, cat([y, z])])      =  cat([x, y, z])

A join of fields and other tensors keeps the others; runs of two and more fields become one operand.

When it does not apply: to a graph that writes in place; to joins along another axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from ...graph import add_constant, emit, is_call, value
from ..base import Change
from .purity import writes

__all__ = ["pack_columns"]

aten = torch.ops.aten
_SCATTERED = 4


@dataclass(frozen=True)
class _Piece:
    """`block[:, field, first:last]`, as (N, 1, w) where `kept`."""

    block: fx.Node
    field: int
    first: int
    last: int
    kept: bool = False

    def follows(self, other: _Piece) -> bool:
        return self.alike(other) and self.field == other.field + 1

    def alike(self, other: _Piece) -> bool:
        return (self.block, self.first, self.last, self.kept) == (
            other.block,
            other.first,
            other.last,
            other.kept,
        )


def pack_columns(gm: fx.GraphModule) -> list[Change]:
    """Rejoins fields of one gather; edits `gm` in place. Adds a few integers where their order differs."""
    if writes(gm):
        return []
    changes: list[Change] = []
    for node in list(gm.graph.nodes):
        if is_call(node, aten.stack.default):
            change = _stack(gm, node)
        elif is_call(node, aten.cat.default) and _axis(node) == 1:
            change = _cat(gm, node)
        elif is_call(node, aten.add.Tensor):
            change = _sum(gm, node)
        else:
            change = None
        if change is not None:
            changes.append(change)
    return changes


def _piece(node: Any) -> _Piece | None:
    """How a node is cut out of a three-dimensional block, if it is."""
    if is_call(node, aten.unsqueeze.default) and node.args[1] in (1, -2):
        inner = _piece(node.args[0])
        return (
            None
            if inner is None or inner.kept
            else _Piece(inner.block, inner.field, inner.first, inner.last, True)
        )
    if (
        is_call(node, aten.slice.Tensor)
        and len(node.args) == 4
        and node.args[1] == 1
        and value(node).ndim == 2
    ):
        whole, (_, _, start, end) = _piece(node.args[0]), node.args
        if whole is None or whole.kept or not isinstance(start, int) or not isinstance(end, int) or start < 0:
            return None
        width = whole.last - whole.first
        if end <= 0:
            return None
        return replace(whole, first=whole.first + start, last=whole.first + min(end, width))
    if not is_call(node, aten.select.int) or node.args[1] != 1 or not isinstance(node.args[2], int):
        return None
    block, field = node.args[0], node.args[2]
    if value(block).ndim != 3 or field < 0:
        return None
    first, last = 0, value(block).shape[2]
    if is_call(block, aten.slice.Tensor) and len(block.args) == 4 and block.args[1] == 2:
        first, last = block.args[2], block.args[3]
        block = block.args[0]
    if not isinstance(first, int) or not isinstance(last, int) or not isinstance(value(block).shape[1], int):
        return None
    return _Piece(block, field, first, last)


def _axis(node: fx.Node) -> int:
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    assert isinstance(axis, int)
    return axis % value(node).ndim


def _take(gm: fx.GraphModule, pieces: list[_Piece]) -> fx.Node:
    """`block[:, fields, first:last]`, (N, len(pieces), w), at the insertion point."""
    block, first, last = pieces[0].block, pieces[0].first, pieces[0].last
    shape = value(block).shape
    if (first, last) != (0, shape[2]):
        block = emit(gm, aten.slice.Tensor, (block, 2, first, last))
    fields = [piece.field for piece in pieces]
    if all(after == before + 1 for before, after in pairwise(fields)):
        if len(fields) == shape[1]:
            return block
        return emit(gm, aten.slice.Tensor, (block, 1, fields[0], fields[-1] + 1))
    index = add_constant(gm, "fields", torch.tensor(fields))
    return emit(gm, aten.index_select.default, (block, 1, index))


def _runs(pieces: list[_Piece | None]) -> list[tuple[int, int]]:
    """Stretches `[start, end)` of operands that one piece of the gather can stand for."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < len(pieces):
        end = start + 1
        first = pieces[start]
        if first is not None:
            while end < len(pieces) and (piece := pieces[end]) is not None and piece.alike(first):
                end += 1
            held = [piece for piece in pieces[start:end] if piece is not None]
            ordered = all(after.follows(before) for before, after in pairwise(held))
            if not ordered and end - start < _SCATTERED:
                end = start + 1
                while (
                    end < len(pieces)
                    and (piece := pieces[end]) is not None
                    and piece.follows(held[end - start - 1])
                ):
                    end += 1
            if end - start > 1:
                found.append((start, end))
        start = end
    return found


def _stack(gm: fx.GraphModule, node: fx.Node) -> Change | None:
    operands: Any = node.args[0]
    pieces = [piece if piece is None or not piece.kept else None for piece in map(_piece, operands)]
    runs = _runs(pieces)
    # Each tensor outside a run costs a view of its own, so one run has to be most of the stack.
    if _axis(node) != 1 or 2 * sum(end - start for start, end in runs) < len(operands) or not runs:
        return None
    made: list[fx.Node] = []
    position = 0
    with gm.graph.inserting_before(node):
        for start, end in [*runs, (len(operands), len(operands))]:
            made += [emit(gm, aten.unsqueeze.default, (operand, 1)) for operand in operands[position:start]]
            if end > start:
                made.append(_take(gm, [piece for piece in pieces[start:end] if piece is not None]))
            position = end
        joined = made[0] if len(made) == 1 else emit(gm, aten.cat.default, (made, 1))
    node.replace_all_uses_with(joined)
    gm.graph.erase_node(node)
    return Change("pack columns", node.name, f"{len(operands)} operands are {len(made)}")


def _cat(gm: fx.GraphModule, node: fx.Node) -> Change | None:
    given: Any = node.args[0]
    operands: list[Any] = []
    for operand in given:
        nested = is_call(operand, aten.cat.default) and len(operand.users) == 1 and _axis(operand) == 1
        operands += operand.args[0] if nested and value(operand).ndim == value(node).ndim else [operand]
    pieces = [_piece(operand) for operand in operands]
    runs = _runs(pieces)
    if not runs and len(operands) == len(given):
        return None
    made: list[fx.Node] = []
    position = 0
    with gm.graph.inserting_before(node):
        for start, end in runs:
            made += operands[position:start]
            held = [piece for piece in pieces[start:end] if piece is not None]
            block = _take(gm, held)
            if held[0].kept:
                made.append(block)
            elif held[0].last - held[0].first == 1:
                made.append(emit(gm, aten.select.int, (block, 2, 0)))
            else:
                made.append(emit(gm, aten.flatten.using_ints, (block, 1)))
            position = end
        made += operands[position:]
        joined = made[0] if len(made) == 1 else emit(gm, aten.cat.default, (made, 1))
    node.replace_all_uses_with(joined)
    gm.graph.erase_node(node)
    return Change("pack columns", node.name, f"{len(operands)} operands are {len(made)}")


def _sum(gm: fx.GraphModule, node: fx.Node) -> Change | None:
    """A chain of additions of fields, taken at its last link."""
    if node.kwargs or len(node.args) != 2 or any(_link(user) for user in node.users):
        return None
    terms: list[Any] = []
    pending: list[Any] = [node]
    while pending:
        term = pending.pop()
        if _link(term) and (term is node or len(term.users) == 1):
            pending += reversed(term.args)
        else:
            terms.append(term)
    pieces = [_piece(term) for term in terms]
    held = [piece for piece in pieces if piece is not None and not piece.kept]
    if len(held) < 3 or not all(piece.alike(held[0]) for piece in held):
        return None
    if any(
        getattr(value(term), "shape", None) != value(node).shape
        for term in terms
        if isinstance(term, fx.Node)
    ):
        return None
    if not all(isinstance(term, fx.Node) for term in terms):
        return None
    with gm.graph.inserting_before(node):
        made = emit(gm, aten.sum.dim_IntList, (_take(gm, sorted(held, key=lambda piece: piece.field)), [1]))
        for term, piece in zip(terms, pieces, strict=True):
            if piece is None or piece.kept:
                made = emit(gm, aten.add.Tensor, (made, term))
    node.replace_all_uses_with(made)
    gm.graph.erase_node(node)
    return Change("pack columns", node.name, f"the sum of {len(held)} fields in one")


def _link(node: Any) -> bool:
    return is_call(node, aten.add.Tensor) and len(node.args) == 2 and not node.kwargs
