"""Tables that are linear maps of others are not kept: what is looked up in the other is mapped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx

from ...budget import Budget
from ...graph import add_constant, emit
from ...program import Program
from ..base import Change, Skip, Technique
from ..fusion.id_columns import IdReader
from ..fusion.lookup_tables import mutated
from ..indirect import look_up
from ..reads import Table, added_up, ids_of, put_in_place
from ..settings import check_share
from ..tables import OnTables, Traffic
from .linear_maps import linear_map, residuals
from .parts import parts
from .whole import get

__all__ = ["RelateTables"]

aten = torch.ops.aten
_ROUNDING = 16 * torch.finfo(torch.float32).eps
_WORST = 0.05


@dataclass(frozen=True)
class RelateTables(OnTables):
    """Replace a table by a linear map of another one that the same ids look up.

        b_v  ~  a_v M + R[p_v]          a (V, d_a), M (d_a, d_b), R (1 + H, d_b), R[0] = 0, p (V,) int32

    M is found for every pair of tables of as many rows that some column of ids looks both up in, by least squares weighted
    with 1 + how often calibration looks each row up (`linear_maps`). R holds what the map leaves of the H rows that it is
    worst at, so that those are right up to rounding: as few as bring sqrt(sum w |b' - b|^2 / sum w |b|^2) under `worst`. With
    `worst=0`, the default, all rows that are more than rounding off are among them. A pair is taken where M, R and p (which is
    left out with H = 0) take less than the table and half of the rows follow it; those that save most first. A table that others are read from stays.

    Tables of one tower beside another's, first-order weights that are sums of an embedding, weights that went through a linear
    layer. Stacked tables share no row to relate: use it before fusion, `[RelateTables(), Fuse()]`, which then makes one of M
    and the linear map behind it.

    Tables stay, each with its reason, that are read by more than lookups, smaller than `least_bytes`, not float32 or not
    finite, and those with a row of zeros (padding) where the other has none, which only an exact zero may stand for.

    Raises `InputError` for other settings, `TechniqueError` for a model that was not captured. Cost: 5 s for a pair of a
    million rows of 64.

    Example:
        >>> RelateTables().exact, RelateTables(worst=0.05).exact
        (True, False)
    """

    name: ClassVar[str] = "relate_tables"
    rule: ClassVar[str] = "relate tables"

    worst: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "worst", zero=True)

    @property
    def exact(self) -> bool:
        """Whether rows are off by rounding alone."""
        return self.worst == 0

    @classmethod
    def asked_by(cls, budget: Budget | None) -> None:
        """Never: the map takes time, so it is for those who ask for it."""

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - less is lost by these, whatever was changed
        """A quarter of the error, and in the end none."""
        return (replace(self, worst=self.worst / 4), replace(self, worst=0.0)) if self.worst else ()

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """Exact maps, and those that are off by a twentieth."""
        return cls(), cls(worst=_WORST)

    def refusal(self, gm: fx.GraphModule, table: Table) -> str:  # noqa: ARG002 - a table is unfit by itself
        """Entries that no product may have."""
        return "" if bool(table.tensor.isfinite().all()) else "it holds NaN or infinities"

    def take(
        self, gm: fx.GraphModule, tables: Sequence[Table], traffic: Traffic
    ) -> tuple[list[Change], list[Skip]]:
        """Every pair, those that save most first."""
        found: list[tuple[Table, Table, _Relation]] = []
        reasons = {table.name: "" for table in tables}
        weights = {table.name: 1.0 + traffic(table).double() for table in tables}
        for a, b in _pairs(gm, tables):
            made = _relate(a.tensor, b.tensor, weights[b.name], self.worst)
            if isinstance(made, str):
                reasons[b.name] = f"of {a.name}: {made}"
            else:
                found.append((a, b, made))
        found.sort(key=lambda one: one[2].nbytes - one[1].tensor.nbytes)
        bases: set[str] = set(gm.meta.get("bases", ()))
        changes: list[Change] = []
        gone: set[str] = set()
        for a, b, relation in found:
            if b.name in bases:
                reasons[b.name] = "another table is read from it"
            elif not {a.name, b.name} & gone:
                _replace(gm, a, b, relation)
                bases.add(a.name)
                gone.add(b.name)
                size, width = b.tensor.shape
                detail = (
                    f"({size}, {width}) is a linear map of {a.name}: {b.tensor.nbytes} -> {relation.nbytes} bytes, "
                    f"{len(relation.odd)} rows kept, the others off by {relation.error:.1e} of their size"
                )
                changes.append(Change(self.rule, b.name, detail, relation.nbytes))
        gm.meta["bases"] = tuple(sorted(bases))
        skipped = [
            Skip(self.rule, name, reason or "no other table of as many rows is looked up by the same ids")
            for name, reason in reasons.items()
            if name not in gone | bases
        ]
        return changes, skipped


@dataclass(frozen=True)
class _Relation:
    """The map M (d_a, d_b), the rows that are kept and what it leaves of them, how far the others are off, and all bytes."""

    found: Tensor
    odd: Tensor
    rest: Tensor
    error: float
    nbytes: int


def _pairs(gm: fx.GraphModule, tables: Sequence[Table]) -> list[tuple[Table, Table]]:
    """Tables of as many rows that the same ids look up."""
    reader = IdReader(gm, mutated(gm))
    ids = {table.name: {reader.read(read.ids).key for read in table.reads} for table in tables}
    return [
        (a, b)
        for b in tables
        for a in tables
        if a is not b and len(a.tensor) == len(b.tensor) and ids[a.name] & ids[b.name]
    ]


def _relate(a: Tensor, b: Tensor, weights: Tensor, worst: float) -> _Relation | str:
    """b by way of a, or why not."""
    (size, width), narrow = b.shape, a.shape[1]
    if 4 * narrow * width >= b.nbytes:
        return f"the map takes {4 * narrow * width} bytes, the table {b.nbytes}"
    if bool((~b.any(1) & a.any(1)).any()):
        return "it has a row of zeros where the other has none"
    found = linear_map(a, b, weights)
    if not bool(found.isfinite().all()):
        return "there is no finite map"
    off = torch.cat([rest.norm(dim=1) for rest in residuals(a, b, found)])
    lengths = torch.cat([b[part].double().norm(dim=1) for part in parts(size, width)])
    if worst:
        odd = _worst_rows(off.square() * weights, worst**2 * float(weights @ lengths.square()))
    else:
        odd = (off > _ROUNDING * lengths).nonzero().squeeze(1)
    nbytes = 4 * narrow * width + (4 * size + 4 * width * (1 + len(odd)) if len(odd) else 0)
    if nbytes >= b.nbytes or 2 * len(odd) > size:
        every = float((weights @ off.square() / (weights @ lengths.square())).sqrt())
        return f"rows are off by {every:.2g} of their size, and with {len(odd)} of them kept it takes {nbytes} bytes, the table {b.nbytes}"
    rest = torch.cat([*residuals(a[odd], b[odd], found)]) if len(odd) else b.new_zeros(0, width).double()
    off[odd] = 0
    error = float((weights @ off.square() / (weights @ lengths.square()).clamp_min(1e-300)).sqrt())
    return _Relation(found, odd, rest.float(), error, nbytes)


def _worst_rows(errors: Tensor, most: float) -> Tensor:
    """As few rows as leave no more than `most` of these errors, ascending."""
    order = errors.argsort(descending=True, stable=True)
    left = errors.sum() - errors[order].cumsum(0)
    count = int((left > most).sum()) + 1 if float(errors.sum()) > most else 0
    return order[:count].sort().values


def _replace(gm: fx.GraphModule, a: Table, b: Table, relation: _Relation) -> None:
    """Every lookup of b as one of a that is mapped."""
    rows = get(gm, a.name)
    weight = add_constant(gm, f"{b.name}_map", relation.found.t().contiguous())
    held = _residuals(gm, b, relation) if len(relation.odd) else None
    for read in b.reads:
        with gm.graph.inserting_before(read.node):
            ids = ids_of(gm, read)
            looked_up = added_up(gm, read, emit(gm, aten.embedding.default, (rows, ids)))
            found: Any = emit(gm, aten.linear.default, (looked_up, weight))
            if held is not None:
                rest = added_up(gm, read, look_up(gm, *held, ids))
                found = emit(gm, aten.add.Tensor, (found, rest))
        put_in_place(gm, read, found)


def _residuals(gm: fx.GraphModule, b: Table, relation: _Relation) -> tuple[fx.Node, fx.Node]:
    """The constants p and R."""
    places = torch.zeros(len(b.tensor), dtype=torch.int32)
    places[relation.odd] = torch.arange(1, len(relation.odd) + 1, dtype=torch.int32)
    rows = torch.cat([relation.rest.new_zeros(1, b.tensor.shape[1]), relation.rest])
    return add_constant(gm, f"{b.name}_places", places), add_constant(gm, f"{b.name}_rest", rows)
