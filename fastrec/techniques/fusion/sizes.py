"""Sizes that depend on the number of rows, as expressions and as arguments of calls."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import sympy
import torch
from torch import fx

from ...graph import emit, value

__all__ = ["Sizes", "shape_of", "writable"]

aten = torch.ops.aten


def shape_of(node: fx.Node) -> list[sympy.Expr]:
    """The sizes of a node's tensor as expressions."""
    return [sympy.Integer(n) if isinstance(n, int) else n.node.expr for n in value(node).shape]


def writable(sizes: Iterable[sympy.Expr]) -> bool:
    """Whether each size is a number, or a number times one symbol."""
    return all(size.is_Integer or size.as_coeff_Mul()[1].is_Symbol for size in sizes)


class Sizes:
    """Arguments that give sizes, each worked out once, from the inputs."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._made: dict[sympy.Expr, fx.Node] = {}

    def __call__(self, size: sympy.Expr | int) -> int | fx.Node:
        """A size as its number, or as a node that gives it; it is `writable`."""
        if isinstance(size, int) or size.is_Integer:
            return int(size)
        if size not in self._made:
            factor, symbol = size.as_coeff_Mul()
            inputs = [node for node in self._gm.graph.nodes if node.op == "placeholder"]
            source, dim = next(
                (node, dim) for node in inputs for dim, found in enumerate(shape_of(node)) if found == symbol
            )
            with self._gm.graph.inserting_after(inputs[-1]):
                made = emit(self._gm, aten.sym_size.int, (source, dim))
            if factor != 1:
                with self._gm.graph.inserting_after(made):
                    made = emit(self._gm, operator.mul, (made, int(factor)))
            self._made[size] = made
        return self._made[size]

    def all(self, sizes: Iterable[sympy.Expr | int]) -> list[int | fx.Node]:
        """Several of them."""
        return [self(size) for size in sizes]
