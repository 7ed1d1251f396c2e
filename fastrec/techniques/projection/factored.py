"""Embedding tables as fewer columns and one small matrix that makes the rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, fx

from ...graph import add_constant, emit
from ...program import Program
from ..base import Change, Skip, Technique
from ..reads import Table, read_otherwise
from ..settings import check_share
from ..tables import OnTables, Traffic

__all__ = ["FactorTables"]

aten = torch.ops.aten
_ENTRIES = 1 << 20


@dataclass(frozen=True)
class FactorTables(OnTables):
    """Hold embedding tables by the directions in which the rows that traffic looks up lie.

        x_v  ~  U[v] B^T        U = E B (V, r),  B (d, r) orthonormal:    4 V d  ->  4 V r + 4 d r bytes

    B are the eigenvectors with the r largest eigenvalues of sum_v w_v E_v E_v^T, w_v = 1 + how often calibration (the
    example, without any) looks v up; r is `share` of d, 1 at least. Nothing is subtracted before, so rows of zeros (padding)
    stay that. Every lookup is followed by a product of d r: this is a setting for memory. `ProjectPCA` needs no such product
    where it finds what takes the basis in.

    Tables stay, each with its reason, that are read by more than lookups, smaller than `least_bytes`, not float32, not
    finite, or of which r columns and B take no less.

    Raises `InputError` for other settings, `TechniqueError` for a model that was not captured and ids that a table does not
    have. Cost: two passes over the table, and eigenvectors of a (d, d) matrix.

    Source: Eckart and Young, "The approximation of one matrix by another of lower rank", 1936.

    Example:
        >>> FactorTables().exact, [step.share for step in FactorTables.ladder()]
        (False, [0.75, 0.5])
    """

    name: ClassVar[str] = "factor_tables"
    rule: ClassVar[str] = "factor tables"

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "share")

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - less is lost by these, whatever was changed
        """More columns."""
        return tuple(replace(self, share=share) for share in (0.5, 0.75, 0.875) if share > self.share)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """Three quarters and half of the columns."""
        return cls(0.75), cls(0.5)

    def refusal(self, gm: fx.GraphModule, table: Table) -> str:
        """Tables that have no directions, or none to spare, and those that are factors already."""
        size, width = table.tensor.shape
        rank = self._rank(width)
        if table.name in gm.meta.get("factored", ()):
            return "it is a factor already"
        if rank * (size + width) >= size * width:
            return f"{rank} of its {width} columns and a matrix take no less"
        return "" if bool(table.tensor.isfinite().all()) else "it holds NaN or infinities"

    def take(
        self, gm: fx.GraphModule, tables: Sequence[Table], traffic: Traffic
    ) -> tuple[list[Change], list[Skip]]:
        """Each table as its factors."""
        changes = []
        counts = [traffic(table) for table in tables]
        for table, seen in zip(tables, counts, strict=True):
            width = table.tensor.shape[1]
            rank = self._rank(width)
            basis, kept = _basis(table.tensor, 1.0 + seen.double(), rank)
            rows = add_constant(gm, f"{table.name}_columns", table.tensor @ basis)
            weight = add_constant(gm, f"{table.name}_basis", basis)
            gm.meta["factored"] = (*gm.meta.get("factored", ()), str(rows.target))
            read_otherwise(gm, table, lambda ids, rows=rows, weight=weight: _product(gm, rows, weight, ids))  # type: ignore[misc]  # defaults of a lambda have no types
            nbytes = 4 * rank * (len(table.tensor) + width)
            detail = f"{tuple(table.tensor.shape)} by {rank} of {width} columns, {kept:.2%} of the energy looked up: "
            detail += f"{table.tensor.nbytes} -> {nbytes} bytes"
            changes.append(Change(self.rule, table.name, detail, nbytes))
        return changes, []

    def _rank(self, width: int) -> int:
        return max(1, int(self.share * width))


def _product(gm: fx.GraphModule, rows: fx.Node, basis: fx.Node, ids: fx.Node) -> fx.Node:
    return emit(gm, aten.linear.default, (emit(gm, aten.embedding.default, (rows, ids)), basis))


def _basis(table: Tensor, weights: Tensor, rank: int) -> tuple[Tensor, float]:
    """The directions (d, rank) of most weighted energy, and the share of it that they keep."""
    width = table.shape[1]
    moments = torch.zeros(width, width, dtype=torch.float64)
    step = max(1, _ENTRIES // width)
    for start in range(0, len(table), step):
        part = table[start : start + step].double()
        moments += part.T @ (part * weights[start : start + step, None])
    values, vectors = torch.linalg.eigh(moments)
    kept = float(values[-rank:].sum() / values.sum().clamp_min(torch.finfo(torch.float64).tiny))
    return vectors[:, -rank:].float().contiguous(), kept
