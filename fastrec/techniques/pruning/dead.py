"""Units that nothing can wake, and units that nobody reads: exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx

from ...errors import InputError
from ...graph import constant, sweep, value
from ...program import Program
from ..base import Applied, Change, Skip, Technique, graph_of
from ..fusion.moves import forget_moved
from ..fusion.purity import unsteady
from ..quantization.layers import named
from ..settings import check_ranges, check_whole
from .bounds import Interval, intervals
from .cutting import cut
from .widths import GraphGroup, Widths, no_units, source_of

__all__ = ["PruneDead"]

RULE = "prune dead"


@dataclass(frozen=True)
class PruneDead(Technique):
    """Take out the hidden units that are one number whatever the model is asked, and those whose readers multiply them by zero.

        h_j = c for all x   ->   V' = V without column j,   c' = c + V_j c_j           a ReLU that can never fire: c_j = 0
        V_j = 0             ->   V' = V without column j

    What a unit can be follows from the tables, any row of which may be looked up, from activations that are bounded, and from the
    `ranges` of numeric inputs, (least, largest) by their names, that the caller declares: batches outside are refused with an
    `InputError` as long as the guards are on (`compress(guards=True)`); no range is taken for granted without being declared.

    So many dead units stay that widths are multiples of `step`, as kernels want them, and one unit of each map. Raises
    `InputError` for other settings and for ranges of what is no input of floating-point numbers, `TechniqueError` for a model
    that was not captured. Cost: a pass over tables and weights.

    Source: interval bounds as in Gowal et al., "On the Effectiveness of Interval Bound Propagation", 2018; Serra, Kumar and
    Ramalingam, "Lossless Compression of Deep Neural Networks", 2020.

    Example:
        >>> PruneDead(ranges={"dense": (0.0, 1.0)}).exact
        True
    """

    name: ClassVar[str] = "prune_dead"
    level: ClassVar[Literal["module", "graph"]] = "graph"

    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    step: int = 16

    def __post_init__(self) -> None:
        check_ranges(self, "ranges")
        check_whole(self, "step", least=1)
        # As they are read back from JSON, and the caller's mapping stays the caller's.
        ranges = {name: (float(low), float(high)) for name, (low, high) in self.ranges.items()}
        object.__setattr__(self, "ranges", ranges)

    @property
    def exact(self) -> bool:
        """Always, for batches within the ranges."""
        return True

    @property
    def promised(self) -> Mapping[str, tuple[float, float]]:
        """The ranges, which the guards check."""
        return self.ranges

    def apply(self, program: Program) -> Applied:
        """The graph without these units; the program's own where there are none."""
        given = graph_of(program, self)
        if reason := unsteady(given):
            return Applied(given, skipped=(Skip(RULE, "", reason),))
        gm = named(given)
        ranges = self._of_inputs(program, gm)
        ends, widths = intervals(gm, ranges), Widths(gm)
        changes: list[Change] = []
        skipped: list[Skip] = []
        found = list(widths.units().values())
        # Who reads the others otherwise is said by techniques that are asked for.
        free = [one for one in found if one.readers and not one.reasons]
        for one in free:
            made = self._prune(gm, one, widths, ends)
            if isinstance(made, Change):
                changes.append(made)
                ends, widths = intervals(gm, ranges), Widths(gm)
            elif made:
                skipped.append(Skip(RULE, one.site, made))
        if not changes and not skipped:
            skipped = [Skip(RULE, "", self._nothing(gm, ranges, found, free))]
        if not changes:
            return Applied(given, (), tuple(skipped))
        sweep(gm)
        forget_moved(gm)
        return Applied(gm, tuple(changes), tuple(skipped))

    def _nothing(
        self,
        gm: fx.GraphModule,
        ranges: Mapping[str, tuple[float, float]],
        found: Sequence[GraphGroup],
        free: Sequence[GraphGroup],
    ) -> str:
        """Why no unit of these groups goes, where none is dead."""
        if not found:
            return no_units(gm, type(self).__name__)
        if not free:
            return "none of its hidden units can go: PruneNeurons says why of each"
        unknown = any(
            node.op == "placeholder" and node.name not in ranges and value(node).is_floating_point()
            for node in gm.graph.nodes
        )
        return "no unit is dead" + " within what is known of its inputs" * unknown

    def _of_inputs(self, program: Program, gm: fx.GraphModule) -> dict[str, tuple[float, float]]:
        """The ranges by the nodes of their inputs."""
        inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
        places = {feature.name: node for feature, node in zip(program.layout.features, inputs, strict=True)}
        missing = sorted({*self.ranges} - {*places})
        if missing:
            raise InputError(
                f"PruneDead(ranges=...) names {', '.join(map(repr, missing))}, which is no input of this model: it has "
                f"{', '.join(places)}"
            )
        for name in self.ranges:
            if not value(places[name]).is_floating_point():
                dtype = str(value(places[name]).dtype).removeprefix("torch.")
                raise InputError(
                    f"PruneDead(ranges=...) names {name!r}, which holds {dtype}: ranges are of floating-point numbers; ids lie between "
                    "what their tables have",
                    feature=name,
                )
        return {places[name].name: ends for name, ends in self.ranges.items()}

    def _prune(
        self, gm: fx.GraphModule, units: GraphGroup, widths: Widths, ends: Mapping[fx.Node, Interval]
    ) -> Change | str:
        """Takes the dead units of a group out; or why they stay, if there are any."""
        root = next(root for root, one in widths.units().items() if one.site == units.site)
        fixed = torch.ones(units.width, dtype=torch.bool)
        unread = torch.ones(units.width, dtype=torch.bool)
        for node in units.readers:
            source, weight = source_of(node), constant(gm, node.args[1])
            assert weight is not None
            places = widths.places(widths.of[source], root)
            fixed &= ends[source].across(weight.shape[1]).fixed[places].all(1)
            unread &= (weight[:, places] == 0).all(2).all(0)
        dead = fixed | unread
        if not bool(dead.any()):
            return ""
        awake = units.width - int(dead.sum())
        left = max(1, awake if units.width < self.step else -(-awake // self.step) * self.step)
        if left >= units.width:
            return f"{int(dead.sum())} of its {units.width} units are dead: too few for a width that is a multiple of {self.step}"
        kept = torch.argsort(dead.long(), stable=True)[:left].sort().values
        gone = torch.ones(units.width, dtype=torch.bool)
        gone[kept] = False
        fitted = {
            node.name: self._told(gm, widths, root, node, kept, gone & fixed, ends) for node in units.readers
        }
        made = cut(gm, widths, {root: kept}, fitted)
        said = f"{int((gone & fixed).sum())} that are one number whatever is asked, {int((gone & ~fixed).sum())} that nobody reads"
        return Change(RULE, units.site, f"{units.width} -> {left} units: {said}", made[root])

    def _told(
        self,
        gm: fx.GraphModule,
        widths: Widths,
        root: int,
        node: fx.Node,
        kept: Tensor,
        fixed: Tensor,
        ends: Mapping[fx.Node, Interval],
    ) -> tuple[Tensor, Tensor]:
        """The columns that a reader keeps, and what those that are one number add to its results."""
        source, weight = source_of(node), constant(gm, node.args[1])
        assert weight is not None
        flow = widths.of[source]
        columns = widths.columns(flow, {root: kept})
        assert columns is not None
        gone = widths.places(flow, root)[fixed].flatten()
        values = ends[source].across(weight.shape[1]).low[gone]
        return weight[:, columns], weight[:, gone].double() @ values
