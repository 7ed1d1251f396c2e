"""Hidden units of a captured graph, for `PruneNeurons`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from ...cost import costs
from ...graph import constant, copy_graph, sweep
from ...program import Program
from ..base import Skip
from ..fusion.id_columns import identity
from ..projection.rewrite import settle
from ..quantization.calibration import inputs_of
from ..quantization.layers import named
from ..traffic import batches_of
from .cutting import cut
from .slopes import slopes_of
from .units import RULE, Fits, Group, Kept, LinearMap, Prunable
from .widths import GraphGroup, Widths, no_units, source_of

__all__ = ["GraphUnits"]

_META = "pruned"
_COUNTED = 128  # rows at which multiply-adds are counted


class GraphUnits(Prunable):
    """Units that the data flow of a captured program shows: a site is the name of a node."""

    def __init__(self, program: Program) -> None:
        gm = named(program.model)  # type: ignore[arg-type]  # a captured program
        super().__init__(program.with_model(gm))
        self._gm = gm
        self.batches = batches_of(program)
        widths = Widths(gm)
        found = widths.units()
        done: frozenset[str] = gm.meta.get(_META, frozenset())
        self._done = [
            node.name for one in found.values() for node in one.writers if str(_held(node).target) in done
        ]
        self.groups = [
            Group(one.site, one.width, tuple(node.name for node in one.writers), self._refusal(one))
            for one in found.values()
        ]
        if not self.groups:
            self.skipped = (Skip(RULE, "", no_units(gm, "PruneNeurons")),)
        self.maps = self._maps(widths, found)

    def _refusal(self, group: GraphGroup) -> str:
        """Why units stay, whatever calibration says, or nothing."""
        if any(node.name in self._done for node in group.writers):
            return "its units are pruned already"
        if group.reasons:
            return group.reasons[0]
        if not group.readers:
            return "no linear map reads its units"
        weights = [constant(self._gm, node.args[1]) for node in group.writers]
        if not all(weight is not None and bool(weight.isfinite().all()) for weight in weights):
            return "its weights are not all finite"
        return ""

    def _maps(self, widths: Widths, found: Mapping[int, GraphGroup]) -> dict[str, LinearMap]:
        free = {root: one for root, one in found.items() if not self._refusal(one)}
        writes = {node: one.site for one in free.values() for node in one.writers}
        reads: dict[fx.Node, dict[str, Tensor]] = {node: {} for node in writes}
        for root, one in free.items():
            for node in one.readers:
                reads.setdefault(node, {})[one.site] = widths.places(widths.of[source_of(node)], root)
        products = {node: found.multiply_adds for node, found in costs(self.program, _COUNTED)}
        made = {}
        for node, places in reads.items():
            weight = constant(self._gm, node.args[1])
            assert weight is not None
            made[node.name] = LinearMap(
                node.name, weight, places, writes.get(node), products[node], identity(weight)
            )
        return made

    def rows(self, program: Program, groups: Iterable[Group]) -> dict[str, Tensor]:
        """What each map that reads these units is given."""
        gm: Any = program.model
        nodes = {node.name: node for node in gm.graph.nodes}
        sources = {one.name: source_of(nodes[one.name]) for group in groups for one in self.readers(group)}
        seen = inputs_of(gm, sources.values(), self.batches)
        return {name: seen[source] for name, source in sources.items()}

    def sloped(self, groups: Iterable[Group]) -> dict[str, tuple[Tensor, Tensor]]:
        """What each map that reads these units is given, and the slopes of the answers by it."""
        nodes = {node.name: node for node in self._gm.graph.nodes}
        seen = self.rows(self.program, groups)
        slopes = slopes_of(self._gm, [source_of(nodes[name]) for name in seen], self.batches)
        return {name: (x, slopes[source_of(nodes[name])]) for name, x in seen.items()}

    def without(self, kept: Kept, fits: Fits) -> Program:
        """The program with these units and weights."""
        gm, _ = self._cut(kept, fits)
        return self.program.with_model(gm)

    def finished(self, kept: Kept, fits: Fits, seen: Iterable[Group]) -> tuple[nn.Module, dict[str, int]]:
        """The graph with these units and weights, whose `meta` names the weights that write those that were seen."""
        gm, made = self._cut(kept, fits)
        done = {*self._done, *(name for group in seen for name in group.writers)}
        settle(gm, _META, {str(_held(node).target) for node in gm.graph.nodes if node.name in done})
        return gm, made

    def _cut(self, kept: Kept, fits: Fits) -> tuple[fx.GraphModule, dict[str, int]]:
        gm = copy_graph(self._gm)
        widths = Widths(gm)
        roots = {one.site: root for root, one in widths.units().items()}
        made = cut(gm, widths, {roots[site]: units for site, units in kept.items()}, fits)
        sweep(gm)
        return gm, {site: made[roots[site]] for site in kept}


def _held(node: fx.Node) -> fx.Node:
    held: Any = node.args[1]
    assert isinstance(held, fx.Node)
    return held
