"""Principal components of what calibration looks up: narrower tables, and thinner linear maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, fx

from ...graph import constant
from ...program import Program
from ..base import Applied, Change, Skip, Technique, graph_of
from ..fusion.purity import unsteady
from ..quantization.calibration import inputs_of
from ..quantization.layers import linear_maps, named
from ..quantization.sensitivity import moved_by
from ..reads import Table, find_tables
from ..settings import check_known, check_names, check_share, check_switch, check_whole
from ..traffic import batches_of
from .bases import Basis
from .fit import STEP, fitted
from .flows import Flows
from .groups import Group
from .linears import split, thin
from .rewrite import project, settle

__all__ = ["ProjectPCA"]

TABLES = "project tables"
LINEARS = "project linears"
# Two products in place of one have to save a third of it: each is a call.
_SHARE = 2 / 3
_MILDER = (0.25, 0.0625)
_META = "projected"
_SMALL = 4096  # weights of a layer below which a search does not ask

Batches = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class ProjectPCA(Technique):
    """Cut the columns that traffic does not use from embedding tables and from large linear maps.

        x = E[id],  x ~ m + D z,  z = A^T (x - m) (r,):     E (V, d) -> (E - m) A (V, r)      W (O, d) -> W D (O, r)

    A basis goes through all that treats columns alike: joins, reshapes, sums and weighted sums of rows. It ends at linear
    maps, whose weights take it in, and at inner products of rows, which any rotation keeps: a table and the product that
    reads it both shrink, and no call is added. Tables whose rows are added, laid over each other or multiplied with each
    other (a factorisation machine, DLRM's products, two towers' tables) share one basis, the eigenvectors of E x x^T; where
    linear maps alone read a table it has its own, of what these maps make of its rows (`bases`). The rows are those that
    calibration looks up, as often as it does, and as many others as it is likely to have missed. Where the columns are
    read one by one (ReLU, layer norm, softmax, a cross network) the tables stay. Put it before `Fuse`: fusion lays tables side by side.

    Linear maps of at least `least` weights are two through the r columns of their results that the calibration uses
    (`linears`), where that takes at most two thirds of the products; `linears=False` leaves them.

    `energy` is the share of the energy that is kept, which the smallest r that is a multiple of 4 (8 from width 64 on and in maps)
    does; `rank` is r itself, of tables. Groups of tables of less than `least_bytes` stay. `only` names the
    sites to take (None: all), `without` those to leave: a group by any of its tables, a map by its node in the graph.

    Raises `InputError` for other settings and for a site in `only` that the model does not have, `TechniqueError` for a
    model that was not captured and ids that a table does not have. Cost: a run of each calibration batch, a pass over the tables, and
    eigenvectors of matrices of the width of tables and maps.

    Source: principal components; for maps, of what comes of them, as in Yu and Wu, "Compressing Transformers: Features
    Are Low-Rank, but Weights Are Not!", 2023.

    Example:
        >>> ProjectPCA().exact, [step.energy for step in ProjectPCA.ladder()]
        (False, [0.99, 0.95])
    """

    name: ClassVar[str] = "project_pca"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    fitted: ClassVar[bool] = True

    rank: int | None = None
    energy: float = 0.99
    linears: bool = True
    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    least: int = 65536
    least_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        check_names(self, "only", "without")
        if self.rank is not None:
            check_whole(self, "rank", least=1)
        check_share(self, "energy", one=True)
        check_switch(self, "linears")
        check_whole(self, "least", "least_bytes")

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def apply(self, program: Program) -> Applied:
        """The graph with these tables and maps narrower; the program's own where none is."""
        given = graph_of(program, self)
        if reason := unsteady(given):
            return Applied(given, skipped=(Skip(self.name, "", reason),))
        gm = named(given)
        changes, skipped = self._edit(gm, batches_of(program))
        return Applied(gm if changes else given, tuple(changes), tuple(skipped))

    def _edit(self, gm: fx.GraphModule, batches: Batches) -> tuple[list[Change], list[Skip]]:
        """Edits the graph: tables first, then maps of what is left of them."""
        done: set[str] = set(gm.meta.get(_META, ()))
        names = {node.name for node in linear_maps(gm)}
        changes, skipped, sites = self._tables(gm, batches, done)
        check_known(self, "only", sorted({*sites, *names}), "group of tables and no linear map")
        more, left = self._linears(gm, batches, done) if self.linears else ([], [])
        if changes or more:
            settle(gm, _META, done)
        return changes + more, skipped + left

    def _takes(self, *names: str) -> bool:
        """Whether a site of these names is to be taken: a group has those of all of its tables."""
        chosen = self.only is None or any(name in self.only for name in names)
        return chosen and not any(name in self.without for name in names)

    def _tables(
        self, gm: fx.GraphModule, batches: Batches, done: set[str]
    ) -> tuple[list[Change], list[Skip], list[str]]:
        """What became of each group of tables, and the sites there are."""
        tables = [table for table in find_tables(gm) if table.tensor.shape[1] > 1]
        reasons = {table.name: _unfit(table, done) for table in tables}
        skipped = [
            Skip(TABLES, name, reason) for name, reason in reasons.items() if reason and self._takes(name)
        ]
        flows = Flows(gm, [table for table in tables if not reasons[table.name]])
        groups = {
            root: group
            for root, group in flows.groups().items()
            if self._takes(*(table.name for table in group.tables))
        }
        kept = {}
        for root, group in groups.items():
            reason = self._refusal(group)
            if reason:
                skipped.append(Skip(TABLES, group.tables[0].name, reason))
            else:
                kept[root] = group
        bases = {}
        for root, basis in fitted(gm, kept, batches, self.energy, self.rank).items():
            group, rank = kept[root], basis.encode.shape[1]
            if rank < group.width:
                bases[root] = basis
            else:
                reason = f"{self.energy:.2%} of its energy takes all of its {group.width} columns"
                skipped.append(Skip(TABLES, group.tables[0].name, reason))
        changes = []
        if bases:
            made = project(gm, flows, kept, bases)
            done |= made.names
            changes = [
                Change(TABLES, kept[root].tables[0].name, _said(kept[root], basis), made.bytes[root])
                for root, basis in bases.items()
            ]
        return changes, skipped, [*reasons]

    def _refusal(self, group: Group) -> str:
        """Why a group stays, whatever calibration says, or nothing."""
        size = sum(table.tensor.nbytes for table in group.tables)
        if group.reasons:
            return group.reasons[0]
        if not group.contracted and not group.maps:
            return "nothing reads its rows"
        if len(group.entries) >= group.lookups:
            return f"{len(group.entries)} values that are not looked up would have to be turned for {group.lookups} that are"
        if size < self.least_bytes:
            return f"its {size} bytes are less than {self.least_bytes}"
        if self.rank is not None and self.rank >= group.width:
            return f"rank {self.rank} is not less than its width {group.width}"
        if self.rank is None and group.width <= STEP:
            return f"its {group.width} columns are as few as can be"
        return ""

    def _linears(
        self, gm: fx.GraphModule, batches: Batches, done: set[str]
    ) -> tuple[list[Change], list[Skip]]:
        changes: list[Change] = []
        skipped: list[Skip] = []
        chosen = []
        for node in linear_maps(gm):
            weight = constant(gm, node.args[1])
            assert weight is not None
            if not self._takes(node.name):
                continue
            if str(node.args[1].target) in done:  # type: ignore[union-attr]  # an argument of a node is of any type
                skipped.append(Skip(LINEARS, node.name, "it is projected already"))
            elif weight.numel() < self.least:
                skipped.append(Skip(LINEARS, node.name, f"{weight.numel():,} weights: under {self.least:,}"))
            else:
                chosen.append((node, weight))
        rows = inputs_of(gm, [node.args[0] for node, _ in chosen], batches) if chosen else {}  # type: ignore[misc]  # an argument of a node is of any type
        for node, weight in chosen:
            found = thin(weight, rows[node.args[0]], self.energy, _SHARE)  # type: ignore[index]  # an argument of a node is of any type
            if isinstance(found, str):
                skipped.append(Skip(LINEARS, node.name, found))
                continue
            names, size = split(gm, node, found)
            done |= names
            outputs, inputs = weight.shape
            detail = (
                f"({outputs}, {inputs}) through {found.rank} columns, {found.kept:.2%} of its result's energy"
            )
            changes.append(Change(LINEARS, node.name, detail, size))
        return changes, skipped

    def alternatives(self, changes: tuple[Change, ...]) -> dict[str, Technique]:
        """The tables alone, where maps were taken too: two products in place of one gain at many rows."""
        rules = {change.rule for change in changes}
        return {"tables alone projected": replace(self, linears=False)} if rules == {TABLES, LINEARS} else {}

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:
        """Without the half of its sites that moves the answer most, and then with more of the energy, or more columns."""
        found: list[Technique] = []
        if len(changes) > 1 and isinstance(program.model, fx.GraphModule):
            batches = batches_of(program)
            edits = {
                change.site: partial(replace(self, only=(change.site,), without=())._edit, batches=batches)
                for change in changes
            }
            moved = moved_by(named(program.model), batches, edits)
            order = sorted(moved, key=lambda site: -moved[site])
            found.append(replace(self, without=(*self.without, *order[: math.ceil(len(order) / 2)])))
        milder = [replace(self, energy=1 - (1 - self.energy) * part) for part in _MILDER if self.energy < 1]
        if self.rank is not None:
            milder = [replace(self, rank=self.rank + more) for more in (STEP, 2 * STEP)]
        return (*found, *milder)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """99 and 95 % of the energy."""
        return cls(energy=0.99), cls(energy=0.95)

    @classmethod
    def rungs(cls, program: Program) -> tuple[Self, ...]:
        """Those of the ladder, for smaller tables and layers too: whether one is worth it is measured."""
        return tuple(replace(rung, least=_SMALL, least_bytes=0) for rung in super().rungs(program))


def _unfit(table: Table, done: set[str]) -> str:
    """Why rows of this table have no flow, or nothing."""
    tensor = table.tensor
    if table.reason:
        return table.reason
    if table.name in done:
        return "it is projected already"
    if tensor.dtype is not torch.float32:
        return f"it holds {str(tensor.dtype).removeprefix('torch.')}"
    return "" if bool(tensor.isfinite().all()) else "its numbers are not all finite"


def _said(group: Group, basis: Basis) -> str:
    tables = (
        f"{len(group.tables)} tables" if len(group.tables) > 1 else str(tuple(group.tables[0].tensor.shape))
    )
    kind = (
        "of the energy of their products" if group.contracted else "of the energy of what maps make of them"
    )
    entries = f"; {len(group.entries)} values beside them turned" if group.entries else ""
    return f"{tables}, width {group.width} -> {basis.encode.shape[1]}: {basis.kept:.2%} {kind}{entries}"
