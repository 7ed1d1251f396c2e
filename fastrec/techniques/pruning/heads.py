"""Heads of attention that move the answers least are cut; the map behind makes up for what it can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, fx

from ...graph import add_constant, copy_graph, sweep, value
from ...program import Program
from ..base import Applied, Change, Skip, Technique, graph_of
from ..fusion.heads import weights_of
from ..fusion.no_ops import remove_no_ops
from ..fusion.purity import unsteady
from ..quantization.calibration import inputs_of
from ..quantization.layers import named
from ..settings import check_known, check_names, check_share, check_switch
from ..traffic import batches_of
from .attention import Attention, attentions
from .attention_cutting import cut
from .judge import WORST, Judge
from .least_squares import affine

__all__ = ["PruneHeads"]

RULE = "prune heads"
_META = "heads_pruned"
_MILDER = (0.5, 0.25)
# What is to go, goes in so many parts; after the first only so many times what is left to go is measured anew.
_ROUNDS, _NEAR = 4, 2
# Rows of calibration for each column that is fitted, and of four rows the one that judges.
_ROWS, _EACH = 4, 4

Batches = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class PruneHeads(Technique):
    """Cut the heads of attention that move the answers least.

        y = W_o [h_1 ... h_H] + b_o   ->   y = W' [h_i, i in S] + b'        S the heads left, h_i (B, T, d)

    The rows of the maps of queries, keys and values that make the other heads go, and with them their scores; each layer may be
    left with another number of heads, at least one. An attention is found by data flow (`attention`), whatever writes it. W' and
    b' are the columns of W_o with what the other heads give on average in b_o, or, with `refit`, what brings the layer's result
    nearest to what it was (`least_squares`), where that is nearer on every fourth row of the calibration, which the fit has not
    seen. How much a head matters is measured: the layer is computed without it, with the map that it would have then, and the
    answers are compared (`judge`). Those that move them least go, over all layers together, a quarter of them at a time, and the
    next are measured anew. A head without which answers are more than half off stays.

    `keep` is the share of all heads that is left. `only` names the attentions to take (None: all), by their node in the graph, and
    `without` those to leave. Put it before `Fuse`. Raises `InputError` for other settings and for a name in `only` that is no attention
    of this model, `TechniqueError` for a model that was not captured. Cost: for each head a run of at most eight batches of the
    calibration and two solutions of H d equations, for those near the line again.

    Source: Michel et al., "Are Sixteen Heads Really Better than One?", 2019.

    Example:
        >>> PruneHeads().exact, [step.keep for step in PruneHeads.ladder()]
        (False, [0.75, 0.5])
    """

    name: ClassVar[str] = "prune_heads"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    fitted: ClassVar[bool] = True
    cuts: ClassVar[bool] = True

    keep: float = 0.75
    refit: bool = True
    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_share(self, "keep")
        check_switch(self, "refit")
        check_names(self, "only", "without")

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def apply(self, program: Program) -> Applied:
        """The graph with fewer heads; the program's own where none goes."""
        given = graph_of(program, self)
        reason = unsteady(given)
        if given.meta.get(_META):
            reason = "its heads are pruned already"
        if reason:
            return Applied(given, skipped=(Skip(RULE, "", reason),))
        gm = named(given)
        remove_no_ops(gm)
        sweep(gm)
        found, reasons = attentions(gm)
        check_known(self, "only", [*(one.name for one in found), *reasons], "attention")
        skipped = [Skip(RULE, name, reason) for name, reason in reasons.items() if self._takes(name)]
        if not found and not reasons:
            skipped.append(Skip(RULE, "", "no attention between linear maps was found"))
        chosen = [one for one in found if self._takes(one.name)]
        changes, left = self._prune(gm, chosen, batches_of(program)) if chosen else ([], [])
        if changes:
            gm.meta[_META] = True
        return Applied(gm if changes else given, tuple(changes), (*skipped, *left))

    def _takes(self, name: str) -> bool:
        return (self.only is None or name in self.only) and name not in self.without

    def _prune(
        self, gm: fx.GraphModule, chosen: list[Attention], batches: Batches
    ) -> tuple[list[Change], list[Skip]]:
        """Prunes these attentions; edits `gm`."""
        rows = _rows(gm, chosen, batches)
        skipped = []
        for name, x in rows.items():
            if not len(x) or not bool(x.isfinite().all()):
                reason = (
                    "calibration gave it values that are not finite"
                    if len(x)
                    else "no row of the calibration reaches it"
                )
                skipped.append(Skip(RULE, name, reason))
        bad = {skip.site for skip in skipped}
        chosen = [one for one in chosen if one.name not in bad]
        if not chosen:
            return [], skipped
        judge = Judge(gm, batches)
        gone = self._choose(gm, chosen, rows, judge)
        cuts = []
        for one in chosen:
            if gone[one.name]:
                now = _rows(gm, [one], batches)[one.name]
                found = self._map(gm, one, gone[one.name], rows[one.name], now)
                cuts.append((one, found, cut(gm, one, found.kept, found.weight, found.bias)))
        if not cuts:
            total = sum(len(one.columns) for one in chosen)
            reason = f"answers of the calibration are more than half off without any of its {total} heads"
            if self._count(total) == 0:
                reason = f"{self.keep:.0%} of its {total} heads, rounded up, are all of them"
            return [], [*skipped, Skip(RULE, "", reason)]
        off = f"; answers of the calibration move by {judge.off(gm):.1%} in all"
        changes = [
            Change(RULE, one.name, f"{len(one.columns)} heads -> {len(found.kept)}{found.said}{off}", added)
            for one, found, added in cuts
        ]
        return changes, skipped

    def _choose(
        self, gm: fx.GraphModule, chosen: list[Attention], rows: Mapping[str, Tensor], judge: Judge
    ) -> dict[str, list[int]]:
        """The heads of each attention that go."""
        gone: dict[str, list[int]] = {one.name: [] for one in chosen}
        maps: dict[str, tuple[fx.Node, Map]] = {}
        off = {(one, k): 0.0 for one in chosen for k in range(len(one.columns))}
        count = self._count(len(off))
        for rounds in range(_ROUNDS, 0, -1):
            left = [head for head in sorted(off, key=lambda head: off[head]) if _may_go(head, gone)]
            near = left if rounds == _ROUNDS else left[: _NEAR * count]
            for one, k in near:
                found = self._map(gm, one, [*gone[one.name], k], rows[one.name])
                copy = copy_graph(gm)
                _put(copy, {**maps, one.name: (one.out, found)})
                off[one, k] = judge.off(copy)
            now = -(-count // rounds)
            for one, k in sorted(near, key=lambda head: off[head]):
                if now and _may_go((one, k), gone) and off[one, k] <= WORST:
                    gone[one.name].append(k)
                    maps[one.name] = one.out, self._map(gm, one, gone[one.name], rows[one.name])
                    now, count = now - 1, count - 1
        return gone

    def _count(self, heads: int) -> int:
        """How many of so many heads go: what 0.75 leaves of 12 is 9, whatever 1 - 0.75 is rounded to."""
        return int((1 - self.keep) * heads + 1e-9)

    def _map(
        self, gm: fx.GraphModule, one: Attention, gone: list[int], was: Tensor, now: Tensor | None = None
    ) -> Map:
        """The map of the heads that are left, from what the map behind read before any was cut, and what it reads now."""
        weight, bias = _weights(gm, one)
        x, goal = (was if now is None else now).double(), was.double() @ weight.t() + bias
        kept = [k for k in range(len(one.columns)) if k not in gone]
        left, lost = one.columns[kept].flatten(), one.columns[gone].flatten()
        plain = Map(kept, left, weight[:, left], bias + weight[:, lost] @ x.mean(0)[lost])
        return _refitted(plain, x[:, left], goal) if self.refit else plain

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - the same for all
        """Half and a quarter of what was cut."""
        return tuple(replace(self, keep=1 - (1 - self.keep) * part) for part in _MILDER)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """Three quarters and a half of the heads."""
        return cls(0.75), cls(0.5)


def _rows(gm: fx.GraphModule, chosen: list[Attention], batches: Batches) -> dict[str, Tensor]:
    """What the map behind each attention reads, (n, H d), by the attention's name."""
    sources: dict[str, fx.Node] = {one.name: one.out.args[0] for one in chosen}  # type: ignore[misc]  # an argument of a node is of any type
    found = inputs_of(gm, sources.values(), batches)
    return {name: found[source] for name, source in sources.items()}


def _weights(gm: fx.GraphModule, one: Attention) -> tuple[Tensor, Tensor]:
    """The weight (O, H d) and bias (O,) of the map behind, float64."""
    held = weights_of(gm, one.out)
    assert held is not None
    weight, bias = held
    return weight.double(), torch.zeros(len(weight)).double() if bias is None else bias.double()


def _may_go(head: tuple[Attention, int], gone: Mapping[str, list[int]]) -> bool:
    """Whether a head is there still, and not the last of its attention."""
    one, k = head
    return k not in gone[one.name] and len(gone[one.name]) < len(one.columns) - 1


@dataclass(frozen=True)
class Map:
    """The map behind an attention by the heads `kept`: weight (O, H' d) of these columns, bias (O,), and what is said of it."""

    kept: list[int]
    columns: Tensor
    weight: Tensor
    bias: Tensor
    said: str = ""


def _put(gm: fx.GraphModule, maps: Mapping[str, tuple[fx.Node, Map]]) -> None:
    """Puts these maps in the place of those behind attentions, zeros for the other heads, in a copy of their graph."""
    nodes = {node.name: node for node in gm.graph.nodes}
    for of, made in maps.values():
        out = nodes[of.name]
        whole = made.weight.new_zeros(len(made.weight), value(out.args[0]).shape[-1])
        whole[:, made.columns] = made.weight
        constants = [add_constant(gm, out.name, tensor.float()) for tensor in (whole, made.bias)]
        out.args, out.kwargs = (out.args[0], *constants), {}
    gm.recompile()


def _refitted(plain: Map, x: Tensor, goal: Tensor) -> Map:
    """The map of x that is nearest to the goal, and how much nearer; the plain one where it is not."""
    judge = torch.arange(len(x)) % _EACH == _EACH - 1
    if int((~judge).sum()) < _ROWS * x.shape[1]:
        return plain
    found = affine(x[~judge], goal[~judge], plain.weight)
    x_judge, right = x[judge], goal[judge]
    spread = float((right - right.mean(0)).norm())
    before, after = (
        float((x_judge @ w.t() + b - right).norm()) / spread if spread else 0.0
        for w, b in ((plain.weight, plain.bias), found)
    )
    if not after < before:
        return plain
    weight, bias = affine(x, goal, plain.weight)
    said = f"; the map behind refitted, its result {after:.1%} off in place of {before:.1%}"
    return replace(plain, weight=weight, bias=bias, said=said)
