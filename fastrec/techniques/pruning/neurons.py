"""Fewer hidden units: narrower MLPs, towers, experts and feed-forward parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, fx

from ...cost import costs
from ...errors import InputError, TechniqueError
from ...graph import constant, sweep
from ...program import Program
from ..base import Applied, Change, Skip, Technique
from ..fusion.id_columns import identity
from ..fusion.purity import writes
from ..projection.rewrite import settle
from ..quantization.calibration import inputs_of
from ..quantization.layers import named
from ..quantization.sensitivity import moved_by
from ..settings import check_choice, check_names, check_share, check_switch, check_whole
from ..traffic import batches_of
from .cutting import cut
from .least_squares import affine, refitted
from .order import By, Reading, by_activation, by_score
from .shares import Map, levels, narrowed, work
from .slopes import slopes_of
from .widths import Units, Widths

__all__ = ["PruneNeurons"]

RULE = "prune neurons"
_META = "pruned"
_COUNTED = 128  # rows at which multiply-adds are counted
_JUDGED = 2048  # rows on which widths are compared
_MILDER = (0.5, 0.25)

Batches = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class PruneNeurons(Technique):
    """Take out the hidden units that the answers need least, and let those that are left make up for them.

        V f(W x + b) + c   ->   V' f(W_K x + b_K) + c'           K the units that stay,  V', c' by least squares

    Units are those that linear maps write and linear maps read (`widths`): of MLPs, towers, experts, feed-forward parts, beside
    whatever else they are joined with. Units that are added up or laid over each other go together.

    `keep` is the share of the multiply-adds, of all maps that write or read such units, that may be left. Which units of a group
    go first is told `by` what the maps that read them make of them (`order`); how many of each group, by how far the answers of the
    calibration move with fewer units in it alone (`shares`). Widths are multiples of `step`, as kernels want them. With
    `reconstruct`, weights and biases of the maps that read them are fitted to what they gave before, in the graph's order.

    `only` names the maps whose units to take (None: all), `without` those to leave. Raises `InputError` for other settings and for
    names in `only` that write no units, `TechniqueError` for a model that was not captured. Cost: some eight runs of 2,048 rows
    for each group, and an inverse of a matrix of the width of each map's input.

    Source: Frantar and Alistarh, "Optimal Brain Compression", 2022, for whole units; Fang et al., "DepGraph: Towards Any Structural
    Pruning", 2023, for groups.

    Example:
        >>> PruneNeurons().exact, [step.keep for step in PruneNeurons.ladder()]
        (False, [0.75, 0.5, 0.25])
    """

    name: ClassVar[str] = "prune_neurons"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    fitted: ClassVar[bool] = True
    cuts: ClassVar[bool] = True

    keep: float = 0.5
    by: By = "activation"
    step: int = 16
    reconstruct: bool = True
    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_share(self, "keep", one=True)
        check_choice(self, "by", By)
        check_whole(self, "step", least=1)
        check_switch(self, "reconstruct")
        check_names(self, "only", "without")

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def apply(self, program: Program) -> Applied:
        """The graph with fewer units; the program's own where none can go."""
        if not isinstance(program.model, fx.GraphModule):
            raise TechniqueError("rewrites captured graphs: capture the program first", technique=self.name)
        if writes(program.model):
            reason = "the graph writes in place: values seen may change"
            return Applied(program.model, skipped=(Skip(RULE, "", reason),))
        gm = named(program.model)
        done: set[str] = set(gm.meta.get(_META, ()))
        widths = Widths(gm)
        units = widths.units()
        self._check_names([one.site for one in units.values()])
        chosen = {root: one for root, one in units.items() if self._takes(one)}
        reasons = {root: self._refusal(gm, one, done) for root, one in chosen.items()}
        skipped = [Skip(RULE, chosen[root].site, reason) for root, reason in reasons.items() if reason]
        kept = {root: one for root, one in chosen.items() if not reasons[root]}
        changes, left = self._prune(program.with_model(gm), widths, kept, done) if kept else ([], [])
        if not changes:
            return Applied(program.model, (), (*skipped, *left))
        settle(gm, _META, done)
        return Applied(gm, tuple(changes), (*skipped, *left))

    def _takes(self, units: Units) -> bool:
        names = {node.name for node in units.writers}
        return (self.only is None or bool(names & {*self.only})) and not names & {*self.without}

    def _check_names(self, known: Iterable[str]) -> None:
        known = list(known)
        for name in self.only or ():
            if name not in known:
                raise InputError(
                    f"PruneNeurons(only=...) has {name!r:.80}, which writes no hidden units of this model: those that do are "
                    f"{', '.join(known) or 'none'}"
                )

    def _refusal(self, gm: fx.GraphModule, units: Units, done: set[str]) -> str:
        """Why units stay, whatever calibration says, or nothing."""
        if any(str(_held(node).target) in done for node in units.writers):
            return "its units are pruned already"
        if units.reasons:
            return units.reasons[0]
        if not units.readers:
            return "no linear map reads its units"
        if not levels(units.width, self.step):
            return f"its {units.width} units are no more than {self.step}"
        for node in units.writers:
            weight = constant(gm, node.args[1])
            assert weight is not None
            if not bool(weight.isfinite().all()):
                return "its weights are not all finite"
        return ""

    def _prune(
        self, program: Program, widths: Widths, units: Mapping[int, Units], done: set[str]
    ) -> tuple[list[Change], list[Skip]]:
        """Edits the program's graph."""
        gm: Any = program.model
        batches = batches_of(program)
        rows = inputs_of(gm, [_source(node) for one in units.values() for node in one.readers], batches)
        skipped = []
        for root, one in list(units.items()):
            if not all(bool(rows[_source(node)].isfinite().all()) for node in one.readers):
                skipped.append(Skip(RULE, one.site, "calibration gave it values that are not finite"))
                units = {other: held for other, held in units.items() if other != root}
        readings = self._readings(gm, widths, units, rows, batches)
        orders = {root: self._order(gm, one, readings[root]) for root, one in units.items()}
        full = {one.site: one.width for one in units.values()}
        maps = _maps(program, widths, units)
        curves = self._curves(gm, batches, units, orders, rows)
        wanted = narrowed(maps, full, curves, self.keep)
        changes = []
        whole, then = work(maps, full, full), work(maps, full, wanted)
        before = {
            node.name: (rows[_source(node)], constant(gm, node.args[1]))
            for one in units.values()
            for node in one.readers
        }
        rows_left: dict[str, Tensor] = {}
        for root, one in units.items():
            width = wanted[one.site]
            if width == one.width:
                done |= {str(_held(node).target) for node in one.writers}
                skipped.append(
                    Skip(
                        RULE,
                        one.site,
                        f"all {one.width} units stay: others are missed less for what they save",
                    )
                )
                continue
            kept = orders[root][-width:].sort().values
            now = Widths(gm)
            place = _root(now, one.site)
            fitted = (
                self._fitted(gm, now, place, kept, batches, before, rows_left) if self.reconstruct else {}
            )
            names = cut(gm, now, {place: kept}, fitted)
            done |= names
            rows_left |= {node.name: kept for node in one.writers}
            added = sum(_constant(gm, name).nbytes for name in names)
            moved = curves[one.site][width]
            others = f" of {len(one.writers)} maps" if len(one.writers) > 1 else ""
            detail = f"{one.width} -> {width} units{others}; alone they move the answers by {moved:.2%} of their spread"
            changes.append(Change(RULE, one.site, detail, added))
        if changes:
            first = changes[0]
            share = f"{whole / then:.2f}x fewer multiply-adds in the maps around all of them"
            changes[0] = replace(first, detail=f"{first.detail}; {share}")
        return changes, skipped

    def _readings(
        self,
        gm: fx.GraphModule,
        widths: Widths,
        units: Mapping[int, Units],
        rows: Mapping[fx.Node, Tensor],
        batches: Batches,
    ) -> dict[int, list[Reading]]:
        """What each group's readers read."""
        sources = [_source(node) for one in units.values() for node in one.readers]
        slopes = slopes_of(gm, sources, batches) if self.by in ("taylor", "fisher") else {}
        found: dict[int, list[Reading]] = {}
        for root, one in units.items():
            for node in one.readers:
                source, weight = _source(node), constant(gm, node.args[1])
                assert weight is not None
                places = widths.places(widths.of[source], root)
                found.setdefault(root, []).append(Reading(rows[source], weight, places, slopes.get(source)))
        return found

    def _order(self, gm: fx.GraphModule, units: Units, readings: Sequence[Reading]) -> Tensor:
        if self.by == "activation":
            return by_activation(readings)
        weights = [constant(gm, node.args[1]) for node in units.writers]
        return by_score(self.by, readings, [weight for weight in weights if weight is not None])

    def _curves(
        self,
        gm: fx.GraphModule,
        batches: Batches,
        units: Mapping[int, Units],
        orders: Mapping[int, Tensor],
        rows: Mapping[fx.Node, Tensor],
    ) -> dict[str, dict[int, float]]:
        """How far the answers move with fewer units of one group alone, at each of its levels."""
        edits: dict[str, Any] = {}
        for root, one in units.items():
            for width in levels(one.width, self.step):
                kept = orders[root][-width:].sort().values
                edits[f"{one.site} {width}"] = partial(self._alone, units=one, kept=kept, rows=rows)
        moved = moved_by(gm, _few(batches), edits)
        found: dict[str, dict[int, float]] = {}
        for key, far in moved.items():
            site, _, width_told = key.rpartition(" ")
            found.setdefault(site, {})[int(width_told)] = far
        return found

    def _alone(self, gm: fx.GraphModule, units: Units, kept: Tensor, rows: Mapping[fx.Node, Tensor]) -> None:
        """Cuts one group of a copy of the graph."""
        widths = Widths(gm)
        root = _root(widths, units.site)
        names = {_source(node).name: node for node in units.readers}
        before = {
            node.name: (rows[_source(names[_source(node).name])], constant(gm, node.args[1]))
            for node in widths.units()[root].readers
        }
        fitted = {}
        if self.reconstruct:
            for node in widths.units()[root].readers:
                x, weight = before[node.name]
                columns = widths.columns(widths.of[_source(node)], {root: kept})
                assert columns is not None and weight is not None
                fitted[node.name] = affine(x[:, columns], x @ weight.t(), weight[:, columns])
        cut(gm, widths, {root: kept}, fitted)
        sweep(gm)

    def _fitted(
        self,
        gm: fx.GraphModule,
        widths: Widths,
        root: int,
        kept: Tensor,
        batches: Batches,
        before: Mapping[str, tuple[Tensor, Tensor | None]],
        rows_left: Mapping[str, Tensor],
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """What the readers of a group become, so that they give on the graph as it is now what they gave at first."""
        readers = widths.units()[root].readers
        now = inputs_of(gm, [_source(node) for node in readers], batches)
        shared: dict[Any, list[fx.Node]] = {}
        for node in readers:
            weight = constant(gm, node.args[1])
            columns = widths.columns(widths.of[_source(node)], {root: kept})
            assert weight is not None and columns is not None
            shared.setdefault((identity(weight), tuple(columns.tolist())), []).append(node)
        found = {}
        for (_, columns), nodes in shared.items():
            xs, ys = [], []
            for node in nodes:
                x, held = before[node.name]
                assert held is not None
                y = x.double() @ held.double().t()
                xs.append(now[_source(node)][:, list(columns)])
                ys.append(y[:, rows_left[node.name]] if node.name in rows_left else y)
            weight = constant(gm, nodes[0].args[1])
            assert weight is not None
            made = refitted(torch.cat(xs), torch.cat(ys), weight[:, list(columns)])
            found.update(dict.fromkeys((node.name for node in nodes), made))
        return found

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - the same for all
        """Half and a quarter of what was cut."""
        return tuple(replace(self, keep=1 - (1 - self.keep) * part) for part in _MILDER if self.keep < 1)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """Three quarters, a half and a quarter of the multiply-adds."""
        return cls(0.75), cls(0.5), cls(0.25)


def _maps(program: Program, widths: Widths, units: Mapping[int, Units]) -> list[Map]:
    """The maps that write or read these units, with their multiply-adds."""
    products = {node: found.multiply_adds for node, found in costs(program, _COUNTED)}
    writers = {node: one.site for one in units.values() for node in one.writers}
    nodes = dict.fromkeys([*writers, *(node for one in units.values() for node in one.readers)])
    found = []
    for node in nodes:
        flow = widths.of.get(_source(node))
        reads: list[tuple[str | None, int]] = [(None, 1)]
        if flow is not None:
            roots = [(widths.root(part.leaf), part.width) for part in flow.parts]
            reads = [(units[root].site if root in units else None, width) for root, width in roots]
        found.append(Map(products[node], writers.get(node), reads))
    return found


def _few(batches: Batches) -> Batches:
    """The first batches, of some thousands of rows together."""
    kept, rows = [], 0
    for batch in batches:
        kept.append(batch)
        rows += max((len(tensor) for tensor in batch if tensor.ndim), default=1)
        if rows >= _JUDGED:
            break
    return kept


def _root(widths: Widths, site: str) -> int:
    """The group whose first map has this name."""
    return next(root for root, one in widths.units().items() if one.site == site)


def _source(node: fx.Node) -> fx.Node:
    source: Any = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _held(node: fx.Node) -> fx.Node:
    held: Any = node.args[1]
    assert isinstance(held, fx.Node)
    return held


def _constant(gm: fx.GraphModule, name: str) -> Tensor:
    held: Tensor = gm.get_buffer(name)
    return held
