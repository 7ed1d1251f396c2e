"""Older events of long histories as means of segments, where each candidate looks at all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from ...cost import costs
from ...graph import ancestors, copy_graph, emit, is_call, is_free, operator_name, sweep, value
from ...program import Program
from ..base import Applied, Change, Skip, Technique, graph_of
from ..fusion.positions import Part, Place
from ..fusion.purity import unsteady
from ..settings import check_whole
from ..traffic import batches_of, values_seen
from .segments import Segments
from .stretches import Left, Stretch, find_stretch, has_events, sums, tensor_inputs

__all__ = ["TruncateHistory"]

aten = torch.ops.aten
RULE = "truncate history"
# Candidates that work is counted for, and how often the work of the segments has to be saved.
_ROWS, _WORTH = 100, 2.0
_MIXING = {
    "scaled_dot_product_attention": "its events meet in one call of attention, whose scores cannot be weighted",
    "fft_rfft": "filters in the frequency domain mix all events: one position of them is a weighted sum already",
}


@dataclass(frozen=True)
class TruncateHistory(Technique):
    """Give target attention the newest `recent` events of a history, and the older ones as means of `segments` segments.

        sum_t f(x_t)                        ~  sum_j w_j f(z_j)  +  sum_{t >= T - r} f(x_t)          x (..., T, d)
        sum_t softmax_t(s(x_t)) v(x_t)      ~  the same sum over z_j and x_t, with s(z_j) + log w_j

    z_j is the mean of the real events of a segment and w_j their number, so what f and v do not bend is exact: sums over
    events, and scores that hardly vary within a segment. Each candidate sees r + m positions in place of T. A history has its newest
    event last, and padding, if any, in front, by a mask that every use shares.

    Found by data flow: ids (rows, T) are looked up, and what is computed event by event is summed. Left, with the reason:
    what mixes events (self-attention, recurrences, filters), plain pooling, which costs less than the segments, and ids
    of which each position has an offset of its own. `milder` keeps twice and four times as much. Raises `InputError` for settings that
    are no whole numbers from 1. Cost: m (T - r) numbers for each length.

    Source: piecewise aggregate approximation, Keogh et al. 2001; counted in a softmax as merged tokens are by Bolya et al. 2023 (arXiv 2210.09461).

    Example:
        >>> TruncateHistory(recent=20).exact, TruncateHistory(recent=20).segments
        (False, 16)
    """

    name: ClassVar[str] = "truncate_history"
    level: ClassVar[Literal["module", "graph"]] = "graph"

    recent: int = 32
    segments: int = 16

    def __post_init__(self) -> None:
        check_whole(self, "recent", "segments", least=1)

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    @property
    def size(self) -> int:
        """How many positions are left."""
        return self.recent + self.segments

    def apply(self, program: Program) -> Applied:
        """The graph with these histories shorter; the program's own where none is worth it."""
        given = graph_of(program, self)
        if reason := unsteady(given):
            return Applied(given, skipped=(Skip(RULE, "", reason),))
        gm = copy_graph(given)
        lookups = [node for node in gm.graph.nodes if has_events(node, self.size)]
        if not lookups:
            return Applied(given)
        why: dict[fx.Node, str] = {}
        chosen: list[Stretch] = []
        work = _Work(program.with_model(gm))
        for end in (end for node in gm.graph.nodes for end in sums(node, self.size)):
            try:
                found = find_stretch(gm, end)
                work.check(found, self.recent, self.segments)
                _check_padding(gm, found, batches_of(program))
                chosen.append(found)
            except Left as reason:
                behind = ancestors([end.node]).intersection(lookups)
                mine = [lookup for lookup in behind if value(lookup).shape[-2] == end.steps]
                why = {**dict.fromkeys(mine, str(reason)), **why}
        taken = {lookup for found in chosen for lookup in found.lookups}
        skips = tuple(
            Skip(RULE, node.name, why.get(node) or _mixing(node)) for node in lookups if node not in taken
        )
        if not chosen:
            return Applied(given, (), skips)
        changes = self._rewrite(gm, chosen)
        sweep(gm)
        return Applied(gm, tuple(changes), skips)

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[TruncateHistory, ...]:  # noqa: ARG002 - the same for all
        """Twice and four times as many of both."""
        return tuple(replace(self, recent=k * self.recent, segments=k * self.segments) for k in (2, 4))

    def _rewrite(self, gm: fx.GraphModule, chosen: Sequence[Stretch]) -> list[Change]:
        changes = []
        written: dict[tuple[Any, ...], Segments] = {}
        for found in chosen:
            end, dtype, mask = found.end, value(found.lookups[0]).dtype, found.mask
            key = (end.steps, dtype, mask and mask.meaning)
            added = 0
            with gm.graph.inserting_before(end.node):
                if key not in written:
                    written[key] = Segments(gm, end.steps, self.recent, self.segments, mask, dtype)
                    added = written[key].added
                short = written[key]
                short.write(found)
                parts = {node: Part(Place(axis), end.steps, 0) for node, axis in end.read.items()}
                made = {node: short.made[node, part] for node, part in parts.items()}
                # Of a product, its first factor has the weights. A mean divides by how many positions are left.
                scale = short.size / end.steps if is_call(end.node, aten.mean.dim) else 1.0
                first = next(iter(parts))
                if found.softmax is None:
                    made[first] = short.weighted(first, parts[first], scale)
                elif scale != 1.0:
                    made[first] = emit(gm, aten.mul.Tensor, (made[first], scale))
            for argument, shorter in made.items():
                end.node.replace_input_with(argument, shorter)
            detail = f"{end.steps} events as {self.segments} segments and the newest {self.recent}"
            changes.append(Change(RULE, end.node.name, detail, added))
        return changes


class _Work:
    """How much the calls of a program do for some candidates, what belongs to the request once for all."""

    def __init__(self, program: Program) -> None:
        self._taken = {node: one.multiply_adds + one.bytes // 4 for node, one in costs(program, _ROWS)}

    def check(self, found: Stretch, recent: int, segments: int) -> None:
        """Raises `Left` where shortening spares little more than the segments take."""
        steps = found.end.steps
        spared = sum(self._of(node) for node in (*found.inner, found.end.node)) * (
            1 - (recent + segments) / steps
        )
        rows = 1 if all(map(_of_request, (*found.lookups, *found.masks))) else _ROWS
        taken = sum(rows * value(leaf).shape[-1] for leaf in found.leaves) * (segments + 3) * (steps - recent)
        if spared < _WORTH * taken:
            raise Left(
                f"at {_ROWS} candidates it would spare {spared:,.0f} multiply-adds and numbers written, and take {taken:,}: "
                "a history that is only pooled, or read by one row, is made shorter where it is stored, by DctTransform"
            )

    def _of(self, node: fx.Node) -> float:
        return self._taken.get(node, 0) / (_ROWS if _of_request(node) else 1)


def _of_request(node: fx.Node) -> bool:
    """Whether all that the node is computed from has the one row of a request."""
    return not any(is_free(one) for one in tensor_inputs(node))


def _check_padding(gm: fx.GraphModule, found: Stretch, batches: Sequence[Sequence[Tensor]]) -> None:
    """Raises `Left` where most padded histories are padded at their end."""
    if found.mask is None:
        return
    (seen,) = values_seen(gm, [found.mask.node], batches).values()
    padded = behind = 0
    for mask in seen:
        real = (mask if found.mask.real else ~mask).flatten(1)
        some = real.any(1) & ~real.all(1)
        padded, behind = padded + int(some.sum()), behind + int((some & ~real[:, -1]).sum())
    if 2 * behind > padded:
        raise Left(
            f"{behind} of {padded} padded histories in the calibration are padded at their end, where the newest "
            "events are looked for: pad them in front"
        )


def _mixing(lookup: fx.Node) -> str:
    """Why what a history goes to cannot be shortened, where none of it is summed event by event."""
    seen, left = {lookup}, [lookup]
    while left:
        node = left.pop(0)
        if (reason := _MIXING.get(operator_name(node))) is not None:
            return reason
        left += [user for user in node.users if user not in seen]
        seen |= set(node.users)
    return "nothing sums over its events"
