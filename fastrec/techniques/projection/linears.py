"""Large linear maps in two thinner ones, through the columns of their results that calibration uses.

    y = W x + b   ~   U (U^T W x) + b + (1 - U U^T) W m         U (O, r) the first eigenvectors of W cov(x) W^T, m = E x

The rank r map that is nearest on the calibration, E |y' - y|^2 (by Eckart and Young): not the columns in which x spreads most,
but those in which what comes of it does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit
from ..quantization.layers import bias_of
from .bases import balanced, rank_for
from .rewrite import constant_bytes, shifted

__all__ = ["Thin", "split", "thin"]

aten = torch.ops.aten
_STEP = 8
# Rows of calibration for each column kept: fewer would fit the rows, not the traffic.
_ROWS = 4


@dataclass(frozen=True)
class Thin:
    """A map as two: U^T W (r, I) and U (O, r), what is added (O,), the share of the energy kept."""

    down: Tensor
    up: Tensor
    shift: Tensor
    kept: float

    @property
    def rank(self) -> int:
        """Columns between the two."""
        return len(self.down)


def thin(weight: Tensor, x: Tensor, energy: float, share: float) -> Thin | str:
    """A map of this weight (O, I) as two on rows x (n, I) of its input, of at most `share` of its products; or why it stays.

    Cost: one product with the rows, and the eigenvectors of a matrix (O, O).
    """
    if not bool(weight.isfinite().all()) or not bool(x.isfinite().all()):
        return "its weights or inputs are not all finite"
    outputs, inputs = weight.shape
    wide = weight.double()
    y = x.double() @ wide.t()
    mean = y.mean(0) if len(y) else y.new_zeros(outputs)
    y = y - mean
    values, vectors = torch.linalg.eigh(y.t() @ y)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = rank_for(values, energy, _STEP)
    now, then = outputs * inputs, rank * (outputs + inputs)
    if then > share * now:
        return f"{energy:.2%} of its result takes {rank} columns: {then:,} products in place of {now:,}"
    if len(x) < _ROWS * rank:
        return f"calibration gives it {len(x):,} rows, for {rank} columns {_ROWS * rank:,} are needed"
    up = vectors[:, :rank] @ balanced(values[:rank])
    kept = float(values[:rank].sum() / values.sum()) if float(values.sum()) else 1.0
    return Thin(up.t() @ wide, up, mean - up @ (up.t() @ mean), kept)


def split(gm: fx.GraphModule, node: fx.Node, found: Thin) -> tuple[set[str], int]:
    """Puts the two in the place of the map `node`; the names and the bytes of their weights."""
    held = constant(gm, node.args[1])
    assert held is not None
    down = add_constant(gm, f"{node.name}_down", found.down.to(held.dtype))
    up = add_constant(gm, f"{node.name}_up", found.up.to(held.dtype).contiguous())
    bias = shifted(gm, node, bias_of(node), found.shift)
    with gm.graph.inserting_before(node):
        inner = emit(gm, aten.linear.default, (node.args[0], down))
    node.args, node.kwargs = (inner, up, bias), {}
    return {str(down.target), str(up.target)}, constant_bytes(gm, down) + constant_bytes(gm, up)
