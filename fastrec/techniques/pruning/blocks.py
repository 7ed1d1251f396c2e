"""Whole blocks dropped from residual streams: those that move the answers least, each with a stand-in of one call or two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from torch import Tensor, fx

from ...cost import cost, costs
from ...errors import InputError
from ...graph import copy_graph, value
from ...program import Program
from ..base import Applied, Change, Skip, Technique, graph_of
from ..fusion.purity import unsteady
from ..quantization.layers import named
from ..settings import check_known, check_names, check_share, check_whole
from ..traffic import batches_of
from .judge import WORST, Judge
from .residuals import Block, blocks
from .stand_ins import KINDS, Kind, StandIn, fit, put, rows_of

__all__ = ["DropBlocks"]

RULE = "drop blocks"
_META = "dropped"

Rows = Mapping[tuple[str, int], Tensor]
# Rows at which multiply-adds are counted: what all rows share is little beside them.
_MANY = 1024


@dataclass(frozen=True)
class DropBlocks(Technique):
    """Drop the blocks of residual streams that move the answers least.

        y = x + f(x, others)   ->   y = x + c,   (1 + s) * x + c   or   (I + V) x + c        x, y (..., d)

    A block is what lies between x and the sum, found by data flow (`residuals`): the attention or the feed-forward part of a
    transformer, normed before or after; a layer of a cross network; a residual part of a tower. In its place comes what is nearest
    to it on the calibration (`stand_ins`): a linear map, a scale and a shift of each channel, or a vector. `stand_in` names the
    dearest that may be used; where it would save nothing, or calibration has too few rows for it, the next cheaper one is. Blocks
    go one by one: each is tried on the calibration, the one that moves the model's answers least is dropped, and the rest are
    tried again with it gone. A stand-in aims at what the stream was before anything was dropped, so a later one makes up for what
    earlier ones left. A block whose stand-in saves no multiply-adds stays, and so do all where answers would be more than half off.

    `drop` is the number of blocks, or the share of all that can be (at least one). `only` names the blocks that may go (None:
    all) and `without` those that stay; a block goes by the node of its sum. Put it before `Fuse`. Raises `InputError` for other
    settings and for a block in `only` that the model does not have, `TechniqueError` for a model that was not captured. Cost: for
    each block that is dropped, a run of each calibration batch, and of at most eight of them for each block there is.

    Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024; a linear map for what
    was cut, Shopkhoev et al., "ReplaceMe: Network Simplification via Depth Pruning and Transformer Block Linearization", 2025.

    Example:
        >>> DropBlocks().exact, [step.drop for step in DropBlocks.ladder()]
        (False, [1, 0.25])
    """

    name: ClassVar[str] = "drop_blocks"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    fitted: ClassVar[bool] = True
    cuts: ClassVar[bool] = True

    drop: int | float = 1
    stand_in: Kind = "linear"
    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_names(self, "only", "without")
        if isinstance(self.drop, float):
            check_share(self, "drop", one=True)
        else:
            check_whole(self, "drop", least=1)
        if self.stand_in not in KINDS:
            raise InputError(
                f'DropBlocks(stand_in=...) takes "mean", "scale" or "linear", got {self.stand_in!r:.80}'
            )

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def apply(self, program: Program) -> Applied:
        """The graph with fewer blocks; the program's own where none goes."""
        given = graph_of(program, self)
        reason = unsteady(given)
        if given.meta.get(_META):
            reason = f"{given.meta[_META]} of its blocks are dropped already"
        if reason:
            return Applied(given, skipped=(Skip(RULE, "", reason),))
        gm = named(given)
        work = _Work(program, gm, self.stand_in)
        found = work.blocks(gm)
        check_known(self, "only", [block.add.name for block in found], "block")
        chosen = [block for block in found if self._takes(block.add.name)]
        skipped = [Skip(RULE, block.add.name, block.reason) for block in chosen if block.reason]
        if not found:
            skipped.append(Skip(RULE, "", "no residual block was found"))
        fit = {block.add.name for block in chosen if not block.reason}
        changes, left = self._drop(work, gm, fit)
        if changes:
            gm.meta[_META] = len(changes)
        return Applied(gm if changes else given, tuple(changes), (*skipped, *left))

    def _takes(self, name: str) -> bool:
        return (self.only is None or name in self.only) and name not in self.without

    def _drop(self, work: _Work, gm: fx.GraphModule, names: set[str]) -> tuple[list[Change], list[Skip]]:
        """Drops blocks of these names until so many are gone; edits `gm`."""
        changes: list[Change] = []
        skipped: list[Skip] = []
        count = len(names)
        while names and len(changes) < count:
            left = [block for block in work.blocks(gm) if block.add.name in names and not block.reason]
            tried = work.tried(gm, left)
            skipped += [Skip(RULE, name, found) for name, found in tried.items() if isinstance(found, str)]
            good = {name: found for name, found in tried.items() if isinstance(found, _Tried)}
            if not changes:
                count = self.drop if isinstance(self.drop, int) else max(1, int(self.drop * len(good)))
            if not good:
                break
            site = min(good, key=lambda name: good[name].moved)
            if good[site].moved > WORST:
                said = f"answers of the calibration would be {good[site].moved:.0%} off without it"
                skipped.append(Skip(RULE, site, f"{said}, and more without any other"))
                break
            block = next(block for block in left if block.add.name == site)
            changes.append(_change(gm, block, good[site]))
            names = {*good} - {site}
        return changes, skipped

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - the same for all
        """Half and a quarter of the blocks that it dropped: the same ones, the last left as they are."""
        counts = sorted({len(changes) // 2, len(changes) // 4} - {0}, reverse=True)
        return tuple(replace(self, drop=count) for count in counts)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """One block, and a quarter of all."""
        return cls(1), cls(0.25)


_WORDS = {"mean": "the mean", "scale": "a scale and a shift", "linear": "a linear map"}


def _change(gm: fx.GraphModule, block: Block, tried: _Tried) -> Change:
    width = value(block.x).shape[block.axis]
    added = put(gm, block, tried.made)
    detail = (
        f"{_WORDS[tried.kind]} of {width} channels in its place, {tried.saved:.0%} of the multiply-adds less; answers of the "
        f"calibration move by {tried.moved:.1%}"
    )
    return Change(RULE, block.add.name, detail, added)


@dataclass(frozen=True)
class _Tried:
    """A block's stand-in, how far the answers are off with it, and the share of the model's multiply-adds it saves."""

    kind: Kind
    made: StandIn
    moved: float
    saved: float


class _Work:
    """What blocks are compared with: the answers and the streams of the graph as it was."""

    def __init__(self, program: Program, gm: fx.GraphModule, kind: Kind) -> None:
        self.program = program
        self._kind, self._batches = kind, batches_of(program)
        self._judge = Judge(gm, self._batches)
        self._multiply_adds = cost(program.with_model(gm), _MANY).multiply_adds
        self._streams: dict[str, Tensor] = {}

    def blocks(self, gm: fx.GraphModule) -> list[Block]:
        """The blocks of a graph."""
        taken = {node: one.multiply_adds for node, one in costs(self.program.with_model(gm), _MANY)}
        return blocks(gm, taken)

    def tried(self, gm: fx.GraphModule, found: list[Block]) -> dict[str, _Tried | str]:
        """Each of these blocks dropped alone from a copy, or why it cannot be."""
        if not found:
            return {}
        wanted = [(node.name, block.axis) for block in found for node in (block.x, block.rest)]
        new = [(block.add.name, block.axis) for block in found if block.add.name not in self._streams]
        rows = rows_of(gm, [*wanted, *new], self._batches)
        self._streams |= {name: rows[name, axis] for name, axis in new}
        before = cost(self.program.with_model(gm), _MANY).multiply_adds
        return {block.add.name: self._one(gm, block, rows, before) for block in found}

    def _one(self, gm: fx.GraphModule, block: Block, rows: Rows, before: int) -> _Tried | str:
        """With the dearest stand-in that may be used and saves something."""
        goal = self._streams[block.add.name] - rows[block.rest.name, block.axis]
        reason = ""
        for kind in KINDS[KINDS.index(self._kind) :: -1]:
            made = fit(rows[block.x.name, block.axis], goal, kind)
            if isinstance(made, str):
                reason = reason or made
                continue
            alone = copy_graph(gm)
            put(alone, block.within(alone), made)
            after = cost(self.program.with_model(alone), _MANY).multiply_adds
            if after < before:
                return _Tried(kind, made, self._judge.off(alone), (before - after) / self._multiply_adds)
            reason = reason or f"{after:,} multiply-adds in place of {before:,}: nothing is saved"
        return reason
