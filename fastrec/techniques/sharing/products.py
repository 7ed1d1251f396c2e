"""Embedding tables by product quantization: a row is some parts, each one of 256 that a codebook holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, fx

from ...program import Program
from ..base import Change, Skip, Technique
from ..reads import Table
from ..settings import check_switch, check_whole
from ..tables import Traffic
from .code_lookups import Coded, Error, Holder, whole
from .codebooks import centres, evened, nearest, sample
from .coded_tables import OnCodes, Plan

__all__ = ["ProductQuantizeTables"]

# A codebook is worth sharing where it is at least this share of what its table takes.
_WORTH = 0.1


@dataclass(frozen=True)
class ProductQuantizeTables(OnCodes):
    """Hold embedding tables by product quantization: of each `columns` columns of a row one byte is left.

        x_v  =  [ C_0[c_v0] | ... | C_m-1[c_v,m-1] ]        m = ceil(d / columns)
        x (V, d) float32   ->   codes c (V, m) uint8, codebooks C (m, codes, columns) float32: V m + 4 codes m columns bytes

    Codebooks are found by k-means, in which rows weigh what calibration looks them up, and half of it all alike
    (`codebooks`). The last part may be narrower. Code 0 is zeros, so rows of zeros (padding) are exactly that. The `hot`
    share of rows that calibration looks up most (the example, without any) stay float32 (`quantization.hot_rows`): 4
    bytes more a row, 4 d more a hot one. With `share`, tables of one width to which a codebook of their own is a tenth
    of their bytes or more have one in common where bytes times error are less by it, or where one of their own would
    not make them smaller. `distil` fits the codebooks to the program's answers (`distillation`).

    A score depends on its own row alone, whatever else is in the batch. Tables stay, each with its reason, that are
    read by more than lookups (tied weights), smaller than `least_bytes`, not float32, not finite, that codes
    leave no smaller, or of which a column would be off by more than four fifths of its size.

    Raises `InputError` for other settings, `TechniqueError` for a model that was not captured. Cost: a second for
    each part of a million rows. A lookup takes two to four times as long as one of float32 (`code_lookups`).

    Source: Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", 2011.

    Example:
        >>> ProductQuantizeTables().exact, [step.columns for step in ProductQuantizeTables.ladder()]
        (False, [2, 4])
    """

    name: ClassVar[str] = "product_quantize_tables"
    rule: ClassVar[str] = "product quantize tables"

    columns: int = 2
    codes: int = 256
    share: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "columns", least=1, most=1 << 16)
        check_whole(self, "codes", least=2, most=256)
        check_switch(self, "share")

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - less is lost by these, whatever was changed
        """More hot rows, where calibration says which are, and then narrower parts."""
        finer = [columns for columns in (8, 4, 2, 1) if columns < self.columns]
        return (*self.hotter(program), *(replace(self, columns=columns) for columns in finer))

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """Parts of two columns, and of four."""
        return cls(columns=2), cls(columns=4)

    def take(
        self, gm: fx.GraphModule, tables: Sequence[Table], traffic: Traffic
    ) -> tuple[list[Change], list[Skip]]:
        """Each table in its new form, or the reason."""
        plans = [Plan.of(table, traffic(table), self.hot) for table in tables]
        holder = Holder(gm)
        done: dict[str, Change | Skip] = {}
        for width in dict.fromkeys(table.tensor.shape[1] for table in tables):
            same = [plan for plan in plans if plan.table.tensor.shape[1] == width]
            for group in self._groups(same):
                done |= self._hold(holder, group)
        ordered = [done[table.name] for table in tables]
        return (
            [one for one in ordered if isinstance(one, Change)],
            [one for one in ordered if isinstance(one, Skip)],
        )

    def _groups(self, plans: Sequence[Plan]) -> list[_Group]:
        """Who shares a codebook, of tables of one width."""
        alone = [_Group.of([plan], self.columns, self.codes) for plan in plans]
        few = [group for group in alone if group.book.nbytes >= _WORTH * group.nbytes]
        if not self.share or len(few) < 2:
            return alone
        joint = _Group.of([group.plans[0] for group in few], self.columns, self.codes)
        if all(group.nbytes < group.was for group in few):
            apart = sum(group.nbytes for group in few)
            error = whole(*(group.errors[0] for group in few))
            better = (joint.nbytes * whole(*joint.errors), joint.nbytes) < (apart * error, apart)
        else:
            better = joint.nbytes < sum(min(group.nbytes, group.was) for group in few)
        return [*(group for group in alone if group not in few), joint] if better else alone

    def _hold(self, holder: Holder, group: _Group) -> dict[str, Change | Skip]:
        """Puts the tables of a group into the graph, but those that would be worthless."""
        reasons = [error.refusal for error in group.errors]
        rows = sum(coded.shape[0] for coded, reason in zip(group.coded, reasons, strict=True) if not reason)
        book, past = group.book.nbytes, 0
        done: dict[str, Change | Skip] = {}
        for plan, coded, error, reason in zip(group.plans, group.coded, group.errors, reasons, strict=True):
            name, table = plan.table.name, plan.table.tensor
            mine = 0 if reason else len(table)
            nbytes = coded.nbytes + plan.hot_bytes
            if mine:  # of what the codebook takes, by rows
                nbytes += book * (past + mine) // rows - book * past // rows
            past += mine
            form = f"{coded.parts} parts of {coded.codebook.shape[1]} columns"
            if len(group.plans) > 1:
                form += f", a codebook for {len(group.plans)} tables"
            if not reason and nbytes >= table.nbytes:
                reason = f"it takes {table.nbytes} bytes, in {form} {nbytes}"
            if reason:
                done[name] = Skip(self.rule, name, reason)
                continue
            holder.hold(plan.table, coded, plan.hot)
            done[name] = Change(self.rule, name, plan.said(form, nbytes, error), nbytes)
        return done


@dataclass(frozen=True, eq=False)
class _Group:
    """Tables of one width with one codebook, and how far each is off."""

    plans: tuple[Plan, ...]
    coded: tuple[Coded, ...]
    errors: tuple[Error, ...]

    @classmethod
    def of(cls, plans: Sequence[Plan], columns: int, codes: int) -> Self:
        """The codebook that fits these tables best, and the codes of each."""
        coded = _fit(plans, columns, codes)
        errors = tuple(plan.error(one) for plan, one in zip(plans, coded, strict=True))
        return cls(tuple(plans), coded, errors)

    @property
    def book(self) -> Tensor:
        """The codebook (m * codes, columns)."""
        return self.coded[0].codebook

    @property
    def nbytes(self) -> int:
        """What all of them take."""
        return self.book.nbytes + sum(
            coded.nbytes + plan.hot_bytes for plan, coded in zip(self.plans, self.coded, strict=True)
        )

    @property
    def was(self) -> int:
        """What they took."""
        return sum(plan.table.tensor.nbytes for plan in self.plans)


def _fit(plans: Sequence[Plan], columns: int, codes: int) -> tuple[Coded, ...]:
    tables = [plan.table.tensor for plan in plans]
    width = tables[0].shape[1]
    wide = min(columns, width)
    x, mass = sample(tables, [plan.coarse for plan in plans])
    places = [slice(start, min(start + wide, width)) for start in range(0, width, wide)]
    sizes = [evened(x[:, place], mass) for place in places]
    books = [
        centres(x[:, place] / size, mass, codes, k)
        for k, (place, size) in enumerate(zip(places, sizes, strict=True))
    ]
    count = max(map(len, books))
    book = torch.zeros(len(books), count, wide)
    for k, (found, size) in enumerate(zip(books, sizes, strict=True)):
        book[k, : len(found), : len(size)] = found * size
    coded, shared = [], book.view(-1, wide)
    for plan, table in zip(plans, tables, strict=True):
        chosen = torch.empty(len(table), len(books), dtype=torch.uint8)
        for k, (place, size) in enumerate(zip(places, sizes, strict=True)):
            chosen[:, k] = nearest(table[:, place] / size, books[k])
        if plan.hot:
            chosen[plan.hot.rows] = 0
        coded.append(Coded(shared, (len(table), width), False, chosen, count))
    return tuple(coded)
