"""Towers of transformers in fewer columns: their residual stream in the directions that calibration uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, fx

from ...program import Program
from ..base import Applied, Change, Skip, Technique, graph_of
from ..fusion.purity import unsteady
from ..quantization.calibration import inputs_of
from ..quantization.layers import named
from ..settings import check_share, check_whole
from ..traffic import batches_of
from .rewrite import settle
from .streams import Stream, streams
from .turning import basis_of_stream, epsilon_of, turn

__all__ = ["RotateTowers"]

RULE = "rotate towers"
_META = "rotated"
# Products that are left, of those there were: turning what enters and what leaves takes some, and each is a call.
_SHARE = 0.95
# Rows of calibration for each column kept.
_ROWS = 4


@dataclass(frozen=True)
class RotateTowers(Technique):
    """Cut the columns of a transformer's residual stream that calibration uses least.

        z = P^T x (r,),  P (d, r)       writers W (d, I) -> P^T W       readers of LayerNorm(x)  W (O, d) -> W diag(g) sqrt(d / r) P

    x is all that blocks add up, P of orthonormal columns and the same throughout, so that sums stay sums and no call is added but
    one product where rows enter and one where they leave (`streams`, `turning`). Feed-forward and attention maps shrink by r / d;
    heads keep their width. Only towers that are normed in front of each block (pre-norm) can be turned: BERT's, the first SASRec
    and others that add what a norm gives are skipped with that reason.

    `keep` is r / d, rounded up to a multiple of 4 (8 from width 64 on); towers of width less than `least` stay. Raises `InputError`
    for other settings, `TechniqueError` for a model that was not captured. Cost: a run of each calibration batch, and
    eigenvectors of a matrix (d, d) for each tower.

    Source: Ashkboos et al., "SliceGPT: Compress Large Language Models by Deleting Rows and Columns", 2024.

    Example:
        >>> RotateTowers().exact, [step.keep for step in RotateTowers.ladder()]
        (False, [0.75, 0.5])
    """

    name: ClassVar[str] = "rotate_towers"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    fitted: ClassVar[bool] = True

    keep: float = 0.75
    least: int = 64

    def __post_init__(self) -> None:
        check_share(self, "keep", one=True)
        check_whole(self, "least")

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def apply(self, program: Program) -> Applied:
        """The graph with narrower towers; the program's own where none is."""
        given = graph_of(program, self)
        if reason := unsteady(given):
            return Applied(given, skipped=(Skip(self.name, "", reason),))
        gm = named(given)
        done: set[str] = set(gm.meta.get(_META, ()))
        changes, skipped = [], []
        for stream in streams(gm):
            made = self._turn(gm, stream, batches_of(program), done)
            if isinstance(made, Change):
                changes.append(made)
            else:
                skipped.append(Skip(RULE, stream.name, made))
        if changes:
            settle(gm, _META, done)
        return Applied(gm if changes else given, tuple(changes), tuple(skipped))

    def _turn(
        self, gm: fx.GraphModule, stream: Stream, batches: Sequence[Sequence[Tensor]], done: set[str]
    ) -> Change | str:
        """Turns one stream, or says why not."""
        width = stream.width
        step = 8 if width >= 64 else 4
        rank = math.ceil(self.keep * width / step) * step
        reason = self._refusal(stream, rank, done)
        if reason:
            return reason
        sources: list[Any] = [norm.args[0] for norm in stream.norms]
        rows = inputs_of(gm, sources, batches)
        least = min(len(found) for found in rows.values())
        if not all(bool(found.isfinite().all()) for found in rows.values()):
            return "calibration gave it values that are not finite"
        if least < _ROWS * rank:
            return f"calibration gives it {least:,} rows, for {rank} columns {_ROWS * rank:,} are needed"
        epsilons = [epsilon_of(norm) for norm in stream.norms]
        basis, kept = basis_of_stream([rows[source] for source in sources], epsilons, rank)
        names, size = turn(gm, stream, basis)
        done |= names
        turns = stream.turns
        detail = (
            f"{len(stream.readers)} norms and {len(stream.writers)} maps into it, width {width} -> {rank}: {kept:.2%} of the "
            f"energy, {turns} product{'s' * (turns != 1)} around it"
        )
        return Change(RULE, stream.name, detail, size)

    def _refusal(self, stream: Stream, rank: int, done: set[str]) -> str:
        """Why a stream stays, whatever calibration says, or nothing."""
        width = stream.width
        if any(str(node.args[1].target) in done for node in stream.writers):  # type: ignore[union-attr]  # an argument of a node is of any type
            return "it is turned already"
        if stream.reason:
            return stream.reason
        if width < self.least:
            return f"its width of {width} is less than {self.least}"
        if rank >= width:
            return f"{self.keep:.0%} of its {width} columns, rounded up, are all of them"
        then = stream.products * rank // width + stream.turns * width * rank
        if then > _SHARE * stream.products:
            return f"{then:,} products in place of {stream.products:,}: too little is saved"
        return ""

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - the same for all
        """Half and a quarter of what was cut."""
        return tuple(replace(self, keep=1 - (1 - self.keep) * part) for part in (0.5, 0.25) if self.keep < 1)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """Three quarters and a half of the columns."""
        return cls(0.75), cls(0.5)
