"""Which layers of a graph are approximated: the settings, and the way to milder ones, of techniques that take some."""

from __future__ import annotations

import abc
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import fx

from ...graph import is_call, value
from ...ops.convolutions import INT8_CONVOLUTION
from ...ops.linears import INT8_LINEAR
from ...program import Program
from ..base import Applied, Change, Skip, Technique, graph_of
from ..fusion.purity import unsteady
from ..settings import check_known, check_names, check_whole
from .layers import is_convolution, named, uses

__all__ = ["OnLayers"]

# Of the layers, those left as they are where the budget is broken.
_PARTS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class OnLayers(Technique):
    """Approximate layers of at least `least` weights, in place, under their names.

    `only` names the sites to take (None: all), `without` those to leave. A technique says which layers it is for by
    `candidates`, what becomes of one by `take`, and how far the answer moves with each by `sensitivities`; `kind` says
    what it takes, `rule` names its changes, and `numbers` what it computes in, `large` weights and more of which gain at
    a few rows.
    """

    level: ClassVar[Literal["module", "graph"]] = "graph"
    kind: ClassVar[str]
    rule: ClassVar[str]
    numbers: ClassVar[str]
    large: ClassVar[int]
    bytes_per_weight: ClassVar[int]

    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    least: int = 4096

    def __post_init__(self) -> None:
        check_names(self, "only", "without")
        check_whole(self, "least")

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    @abc.abstractmethod
    def candidates(self, gm: fx.GraphModule) -> list[fx.Node]:
        """The layers of a graph that this is for."""

    @abc.abstractmethod
    def take(
        self, program: Program, gm: fx.GraphModule, nodes: list[fx.Node]
    ) -> tuple[tuple[Change, ...], list[Skip]]:
        """Edits these layers of `gm`, a copy of the program's graph, as far as that can be."""

    @abc.abstractmethod
    def sensitivities(self, program: Program, sites: Collection[str] | None = None) -> dict[str, float]:
        """How far the answer moves when one layer alone is approximated, for each that can be, or those of `sites`."""

    def missing(self) -> str:
        """Why nothing is to be gained on this machine, or nothing."""
        return ""

    def apply(self, program: Program) -> Applied:
        """The graph with these layers approximated; the program's own where there are none."""
        given = graph_of(program, self)
        reason = unsteady(given) or self.missing()
        if reason:
            return Applied(given, skipped=(Skip(self.rule, "", reason),))
        gm = named(given)
        found = {node.name: node for node in self.candidates(gm)}
        sizes = {
            name: (uses(node), "multiply-adds a row" if is_convolution(node) else "weights")
            for name, node in found.items()
        }
        chosen, skips = self.choose(sizes, [node.name for node in gm.graph.nodes if _is_taken(node)])
        changes, left = self.take(program, gm, [found[name] for name in chosen]) if chosen else ((), [])
        return Applied(gm if changes else given, changes, (*skips, *left))

    def choose(
        self, sizes: Mapping[str, tuple[int, str]], done: Sequence[str]
    ) -> tuple[list[str], list[Skip]]:
        """The sites to take, of those of these sizes and what they are counted in, and those left; `done` are taken already.

        Raises `InputError` for a name in `only` that is no site.
        """
        sites = [*sizes, *done]
        check_known(self, "only", sites, self.kind)
        skips = [
            Skip(self.rule, name, f"to be left as it is, but no {self.kind} of this model")
            for name in self.without
            if name not in sites
        ]
        chosen = []
        for name, (size, kind) in sizes.items():
            if (self.only is not None and name not in self.only) or name in self.without:
                continue
            if size < self.least:
                skips.append(Skip(self.rule, name, f"{size:,} {kind}: under {self.least:,}"))
            else:
                chosen.append(name)
        return chosen, skips

    def alternatives(self, changes: tuple[Change, ...]) -> dict[str, Technique]:
        """The large layers alone: what fewer bits gain grows with a layer and with the rows, what they cost does not."""
        limit = self.large * self.bytes_per_weight
        sizes = [change.added_bytes for change in changes if change.rule == self.rule]
        if self.least >= self.large or not any(size < limit for size in sizes) or max(sizes) < limit:
            return {}
        return {f"{self.numbers} from {self.large:,} weights": replace(self, least=self.large)}

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:
        """Without a quarter, half and three quarters of its layers, those that move the model's answer most."""
        moved = self.sensitivities(program, {change.site for change in changes if change.rule == self.rule})
        order = sorted(moved, key=lambda site: -moved[site])
        counts = sorted({math.ceil(len(order) * part) for part in _PARTS} - {len(order)})
        return tuple(replace(self, without=(*self.without, *order[:count])) for count in counts)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """The layers worth it, and every layer."""
        return (cls(), cls(least=0))


def _is_taken(node: fx.Node) -> bool:
    """Whether the node is a layer that is approximated already."""
    if is_call(node, INT8_LINEAR, INT8_CONVOLUTION):
        return True
    return is_call(node, torch.ops.aten.linear.default) and value(node).dtype is torch.bfloat16
