"""Fewer hidden units: narrower MLPs, towers, experts and feed-forward parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from torch import Tensor, fx

from ...errors import InputError
from ...program import Program
from ..base import Applied, Change, Skip, Technique
from ..fusion.purity import unsteady
from ..settings import check_choice, check_names, check_share, check_switch, check_whole
from . import refits
from .graph_units import GraphUnits
from .module_units import ModuleUnits
from .order import By, Reading, by_activation, by_score
from .shares import Map, levels, narrowed, work
from .units import RULE, Fits, Group, Kept, Prunable, far

__all__ = ["PruneNeurons"]

_MILDER = (0.5, 0.25)


@dataclass(frozen=True)
class PruneNeurons(Technique):
    """Take out the hidden units that the answers need least, and let those that are left make up for them.

        V f(W x + b) + c   ->   V' f(W_K x + b_K) + c'           K the units that stay,  V', c' by least squares

    Units are those that linear maps write and linear maps read: of MLPs, towers, experts, feed-forward parts, beside
    whatever else they are joined with. Units that are added up or laid over each other go together. In a captured model the data
    flow says which they are (`widths`), in one that could not be captured marks that its own code carries along (`marks`).

    `keep` is the share of the multiply-adds, of all maps that write or read such units, that may be left. Which units of a group
    go first is told `by` what the maps that read them make of them (`order`); how many of each group, by how far the answers of the
    calibration move with fewer units in it alone (`shares`). Widths are multiples of `step`, as kernels want them. With
    `reconstruct`, weights and biases of the maps that read them are fitted to what they gave before, group by group (`refits`).

    `only` names the maps whose units to take (None: all), `without` those to leave: by the names of the graph's nodes, or the paths
    of modules. Raises `InputError` for other settings and for names in `only` that write no units, `TechniqueError` for
    scores by gradients of answers that have none. Cost: some eight runs of 2,048 rows for each group, each with six
    solutions of a matrix of the width of each map's input, and an inverse of it.

    Source: Frantar and Alistarh, "Optimal Brain Compression", 2022, for whole units; Fang et al., "DepGraph: Towards Any Structural
    Pruning", 2023, for groups.

    Example:
        >>> PruneNeurons().exact, [step.keep for step in PruneNeurons.ladder()]
        (False, [0.75, 0.5, 0.25])
    """

    name: ClassVar[str] = "prune_neurons"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    modules: ClassVar[bool] = True
    fitted: ClassVar[bool] = True
    cuts: ClassVar[bool] = True

    keep: float = 0.5
    by: By = "activation"
    step: int = 16
    reconstruct: bool = True
    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_share(self, "keep")
        check_choice(self, "by", By)
        check_whole(self, "step", least=1)
        check_switch(self, "reconstruct")
        check_names(self, "only", "without")

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def apply(self, program: Program) -> Applied:
        """The model with fewer units; the program's own where none can go."""
        model = program.model
        if isinstance(model, fx.GraphModule) and (reason := unsteady(model)):
            return Applied(model, skipped=(Skip(RULE, "", reason),))
        units: Prunable = GraphUnits(program) if isinstance(model, fx.GraphModule) else ModuleUnits(program)
        groups, skipped = self._chosen(units.groups)
        rows = units.rows(units.program, groups) if groups else {}
        unseen = {group.site: _unseen(units, group, rows) for group in groups}
        skipped += [Skip(RULE, site, reason) for site, reason in unseen.items() if reason]
        groups = [group for group in groups if not unseen[group.site]]
        right = units.answers(units.program) if groups else []
        if not all(bool(answer.isfinite().all()) for batch in right for answer in batch):
            groups = []
            skipped.append(Skip(RULE, "", "the model's answers to the calibration are not all finite"))
        orders = self._orders(units, groups, rows)
        curves = self._curves(units, groups, orders, rows, right)
        full = {group.site: group.width for group in groups}
        maps = _around(units, full)
        widths = narrowed(maps, full, curves, self.keep)
        kept = {site: _last(orders[site], width) for site, width in widths.items() if width < full[site]}
        skipped += [
            Skip(RULE, site, f"all {full[site]} units stay: others are missed less for what they save")
            for site in full
            if site not in kept
        ]
        if not kept:
            return Applied(program.model, (), (*units.skipped, *skipped))
        fits = self._fits(units, kept, rows) if self.reconstruct else {}
        made, added = units.finished(kept, fits, groups)
        details = [_told(group, widths, curves) for group in groups if group.site in kept]
        fewer = work(maps, full, full) / work(maps, full, widths)
        details[0] += f"; {fewer:.2f}x fewer multiply-adds in the maps around all of them"
        changes = [
            Change(RULE, site, detail, added[site]) for site, detail in zip(kept, details, strict=True)
        ]
        return Applied(made, tuple(changes), (*units.skipped, *skipped))

    def _chosen(self, groups: Sequence[Group]) -> tuple[list[Group], list[Skip]]:
        """The groups to narrow, and those left, of those that the settings name."""
        known = [name for group in groups for name in group.writers]
        for name in self.only or ():
            if name not in known:
                raise InputError(
                    f"PruneNeurons(only=...) has {name!r:.80}, which writes no hidden units of this model: those that do are "
                    f"{', '.join(known) or 'none'}"
                )
        skipped = [
            Skip(RULE, name, "to be left as it is, but it writes no hidden units of this model")
            for name in self.without
            if name not in known
        ]
        chosen = []
        for group in groups:
            names = {*group.writers}
            if (self.only is not None and not names & {*self.only}) or names & {*self.without}:
                continue
            small = f"its {group.width} units are no more than {self.step}" * (group.width <= self.step)
            if reason := group.reason or small:
                skipped.append(Skip(RULE, group.site, reason))
            else:
                chosen.append(group)
        return chosen, skipped

    def _orders(
        self, units: Prunable, groups: Sequence[Group], rows: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The units of each group, those that go first in front."""
        sloped = units.sloped(groups) if groups and self.by in ("taylor", "fisher") else {}
        found = {}
        for group in groups:
            readings = []
            for one in units.readers(group):
                x, slopes = sloped.get(one.name) or (rows[one.name], None)
                readings.append(Reading(x, one.weight, one.places[group.site], slopes))
            weights = units.writers(group)
            by_one = self.by != "activation"
            found[group.site] = by_score(self.by, readings, weights) if by_one else by_activation(readings)
        return found

    def _curves(
        self,
        units: Prunable,
        groups: Sequence[Group],
        orders: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        right: Sequence[Sequence[Tensor]],
    ) -> dict[str, dict[int, float]]:
        """How far the answers move from the right ones with fewer units of one group alone, at each of its levels."""
        found: dict[str, dict[int, float]] = {}
        for group in groups:
            found[group.site] = {}
            alone = refits.Alone(units.readers(group), rows) if self.reconstruct else None
            for width in levels(group.width, self.step):
                kept = {group.site: _last(orders[group.site], width)}
                fits = alone.fits(kept) if alone else {}
                answers = units.answers(units.without(kept, fits))
                found[group.site][width] = far(answers, right)
        return found

    def _fits(self, units: Prunable, wanted: Kept, rows: Mapping[str, Tensor]) -> Fits:
        """What the maps that read units become, one group after the other, so that they give what they gave at first."""
        kept: dict[str, Tensor] = {}
        fits: dict[str, tuple[Tensor, Tensor]] = {}
        for group in units.groups:
            if group.site in wanted:
                now = units.rows(units.without(kept, fits), [group])
                then = kept | {group.site: wanted[group.site]}
                fits |= refits.in_turn(units.readers(group), rows, now, kept, then, fits)
                kept = then
        return fits

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - the same for all
        """Half and a quarter of what was cut."""
        return tuple(replace(self, keep=1 - (1 - self.keep) * part) for part in _MILDER)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """Three quarters, a half and a quarter of the multiply-adds."""
        return cls(0.75), cls(0.5), cls(0.25)


def _unseen(units: Prunable, group: Group, rows: Mapping[str, Tensor]) -> str:
    """Why the calibration says nothing of a group, or nothing."""
    found = [rows.get(one.name) for one in units.readers(group)]
    if any(x is None or not len(x) for x in found):
        return "no row of the calibration reaches all that read its units"
    if not all(x is not None and bool(x.isfinite().all()) for x in found):
        return "calibration gave it values that are not finite"
    return ""


def _around(units: Prunable, sites: Collection[str]) -> list[Map]:
    """The maps that write or read these groups, as `shares` counts them."""
    found = []
    for one in units.maps.values():
        if one.writes in sites or one.places.keys() & sites:
            reads: list[tuple[str | None, int]] = [(site, at.numel()) for site, at in one.places.items()]
            rest = one.weight.shape[1] - sum(count for _, count in reads)
            found.append(Map(one.products, one.writes, [*reads, (None, rest)]))
    return found


def _last(order: Tensor, width: int) -> Tensor:
    """The units that stay, in their own order."""
    return order[-width:].sort().values


def _told(group: Group, widths: Mapping[str, int], curves: Mapping[str, Mapping[int, float]]) -> str:
    width = widths[group.site]
    others = f" of {len(group.writers)} maps" if len(group.writers) > 1 else ""
    moved = f"alone they move the answers by {curves[group.site][width]:.2%}"
    return f"{group.width} -> {width} units{others}; {moved}"
