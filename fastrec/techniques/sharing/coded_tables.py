"""What techniques that hold tables by codes have in common: hot rows, which tables they refuse, and distillation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor, fx

from ...program import Program
from ..base import Applied, Skip, Technique
from ..quantization.hot_rows import Hot, hottest
from ..reads import Table
from ..settings import check_share, check_whole
from ..tables import OnTables
from .code_lookups import Coded, Error, error_of, unfit
from .codebooks import weights_of
from .distillation import distilled

__all__ = ["OnCodes", "Plan"]

_HOT = 0.05


@dataclass(frozen=True)
class Plan:
    """A table, its hot rows, and what each of its rows weighs (V,): for the error, and for the fit, where hot rows weigh 0."""

    table: Table
    hot: Hot | None
    weights: Tensor
    coarse: Tensor

    @classmethod
    def of(cls, table: Table, counts: Tensor, share: float) -> Self:
        """The plan of a table looked up so often, of which this share of rows may be hot."""
        weights = weights_of(counts)
        hot = hottest(counts, share) if share else None
        return cls(table, hot, weights, weights.index_fill(0, hot.rows, 0) if hot else weights)

    @property
    def hot_bytes(self) -> int:
        """What the hot rows take."""
        return self.hot.nbytes(*self.table.tensor.shape) if self.hot else 0

    def error(self, coded: Coded) -> Error:
        """How far the rows are off by these codes."""
        return error_of(self.table.tensor, coded, self.weights, self.coarse)

    def said(self, form: str, nbytes: int, error: Error) -> str:
        """What became of the table."""
        was = self.table.tensor.nbytes
        shape = tuple(self.table.tensor.shape)
        text = f"{shape} in {form}: {was:,} to {nbytes:,} bytes, {was / nbytes:.1f} times smaller, {error}"
        return f"{text}; {self.hot}" if self.hot else text


@dataclass(frozen=True)
class OnCodes(OnTables):
    """Hold tables by codes: `hot` is the share of rows that stay exact, `distil` the steps of distillation."""

    hot: float = field(default=0.0, kw_only=True)
    distil: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "hot", zero=True)
        check_whole(self, "distil")

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def refusal(self, gm: fx.GraphModule, table: Table) -> str:  # noqa: ARG002 - the table alone decides
        """Entries that codes cannot stand for."""
        return unfit(table.tensor)

    def apply(self, program: Program) -> Applied:
        """The graph with these tables, their codebooks fitted to its answers where that is asked for."""
        made = super().apply(program)
        if not (self.distil and made.changes and isinstance(made.model, fx.GraphModule)):
            return made
        found = distilled(program, made.model, self.distil)
        if isinstance(found, str):
            return replace(made, skipped=(*made.skipped, Skip(self.rule, "distillation", found)))
        first, *others = made.changes
        return replace(made, changes=(replace(first, detail=f"{first.detail}; {found}"), *others))

    def hotter(self, program: Program) -> list[Technique]:
        """The same with hot rows, where calibration says which are."""
        return [replace(self, hot=_HOT)] if program.calibration and self.hot < _HOT else []
