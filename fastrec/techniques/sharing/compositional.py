"""Embedding tables as sums of rows of small tables: compositional embeddings, fitted to a trained table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import fx

from ...errors import InputError
from ...program import Program
from ..base import Change, Skip, Technique
from ..reads import Table
from ..settings import check_share, check_switch
from ..tables import Traffic
from .additive import fit_codes, fit_quotients
from .code_lookups import Coded, Holder
from .coded_tables import OnCodes, Plan

__all__ = ["ComposeTables"]

# How many codes a row may have; more make a fit slow, and fewer rows for each are worthless.
_PARTS = (1, 2, 4, 8, 16)
_LEAST_ROWS = 8


@dataclass(frozen=True)
class ComposeTables(OnCodes):
    """Hold embedding tables as sums of rows of small ones, in at most `ratio` of their bytes.

        x_v  =  C_0[c_v0] + ... + C_m-1[c_v,m-1]        learned: m codes of one byte for each row, k <= 256
        x_v  =  A[v // r] + B[v % r]                    otherwise: no codes at all, quotients and remainders of ids

        x (V, d) float32   ->   V m + 4 m k d bytes, or 4 d (ceil(V / r) + r)

    Learned codes say which rows are added, and cost a byte each; how many codes, and so of how many rows each, is what
    loses least of the same bytes. Arithmetic ones come from the id, so that what neither
    its quotient nor its remainder says of a row is lost. Both are fitted to the trained table by weighted least squares, where rows weigh what
    calibration looks them up, and half of it all alike (`codebooks`, `additive`); `distil` then fits the small tables to
    the program's answers on the calibration, for so many steps (`distillation`). Rows of zeros (padding) stay exactly zero. The `hot` share of rows that calibration looks up
    most stay float32 (`quantization.hot_rows`), of learned codes only.

    A score depends on its own row alone, whatever else is in the batch. Tables stay, each with its reason, that are
    read by more than lookups (tied weights), smaller than `least_bytes`, not float32, not finite, for whose codes the
    ratio leaves no room, or of which a column would be off by more than four fifths of its size.

    Raises `InputError` for other settings, `TechniqueError` for a model that was not captured. Cost: 35 s for eight codes
    of a million rows of 64.

    Source: Shi et al., "Compositional Embeddings Using Complementary Partitions for Memory-Efficient Recommendation
    Systems", 2019; learned codes as in Babenko and Lempitsky, "Additive Quantization for Extreme Vector Compression", 2014.

    Example:
        >>> ComposeTables().exact, [step.ratio for step in ComposeTables.ladder()]
        (False, [0.125, 0.0625])
    """

    name: ClassVar[str] = "compose_tables"
    rule: ClassVar[str] = "compose tables"

    ratio: float = 1 / 8
    learned: bool = True

    def __post_init__(self) -> None:
        check_share(self, "ratio")
        check_switch(self, "learned")
        super().__post_init__()
        if self.hot and not self.learned:
            raise InputError(
                "ComposeTables(hot=...) takes 0 with learned=False: where a row is exact takes 4 bytes of each row, which "
                "learned codes use better"
            )

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - less is lost by these, whatever was changed
        """More hot rows, where calibration says which are, and then twice and four times the bytes."""
        larger = [replace(self, ratio=times * self.ratio) for times in (2, 4) if times * self.ratio <= 0.5]
        return (*(self.hotter(program) if self.learned else ()), *larger)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """An eighth of the bytes, and a sixteenth."""
        return cls(ratio=1 / 8), cls(ratio=1 / 16)

    def take(
        self, gm: fx.GraphModule, tables: Sequence[Table], traffic: Traffic
    ) -> tuple[list[Change], list[Skip]]:
        """Each table in its new form, or the reason."""
        changes: list[Change] = []
        skipped: list[Skip] = []
        holder = Holder(gm)
        for table in tables:
            plan = Plan.of(table, traffic(table), self.hot)
            coded = self._coded(plan)
            if isinstance(coded, Coded):
                error = plan.error(coded)
                nbytes = coded.nbytes + coded.codebook.nbytes + plan.hot_bytes
                coded = error.refusal or coded
            if isinstance(coded, Coded) and nbytes >= table.tensor.nbytes:
                coded = f"it takes {table.tensor.nbytes} bytes, in sums {nbytes}"
            if isinstance(coded, str):
                skipped.append(Skip(self.rule, table.name, coded))
                continue
            holder.hold(table, coded, plan.hot)
            form = f"sums of {coded.parts} of {len(coded.codebook):,} rows"
            changes.append(Change(self.rule, table.name, plan.said(form, nbytes, error), nbytes))
        return changes, skipped

    def _coded(self, plan: Plan) -> Coded | str:
        """The table in this form, or why there is no room for it."""
        size, width = plan.table.tensor.shape
        room = int(self.ratio * plan.table.tensor.nbytes)
        if not self.learned:
            divisor = next(
                (r for r in range(1, math.isqrt(size) + 2) if 4 * width * (-(-size // r) + r) <= room), 0
            )
            if not divisor:
                return f"{room} bytes are fewer than quotients and remainders of its {size} rows take"
            return fit_quotients(plan.table.tensor, plan.coarse, divisor)
        counts = {
            parts: min(256, (room // parts - size) // (4 * width)) for parts in range(1, _PARTS[-1] + 1)
        }
        tried = [(parts, counts[parts]) for parts in _PARTS if _LEAST_ROWS <= counts[parts] < 256]
        tried += [(parts, 256) for parts, count in counts.items() if count == 256][-1:]
        if not tried:
            return f"{room} bytes leave no room for codes of its {size} rows: learned=False takes none"
        return fit_codes(plan, tried)
