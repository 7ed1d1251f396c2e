"""Whole fields that hardly move the answers: their lookups become constants, and their inputs are not read any more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor, fx

from ...graph import constant, copy_graph
from ...inputs import Feature
from ...program import Program
from ...rows import count_rows
from ..base import Applied, Change, Skip, Technique, graph_of
from ..fusion.id_columns import identity
from ..fusion.moves import forget_moved
from ..fusion.purity import unsteady
from ..quantization.sensitivity import answers, furthest
from ..settings import check_choice, check_known, check_names, check_share
from ..traffic import batches_of
from .judge import WORST
from .lookups import Field, Part, drop, find_fields
from .origins import Origin, Origins, words_of

__all__ = ["PruneFields"]

By: TypeAlias = Literal["mean", "permutation"]
RULE = "prune fields"
_FAR = "fields_stay"
_LADDER = (0.9, 0.75, 0.5)
# Batches that importance is measured on, fields measured again after each that went, and shufflings of one.
_BATCHES, _NEAR, _SHUFFLES = 64, 4, 3


@dataclass(frozen=True)
class PruneFields(Technique):
    """Keep this share of a model's fields; of the others the mean row stands for every id.

        x_f(id)  ~  m_f  =  sum_v n_v x_v / sum_v n_v          n_v how often calibration looks row v of the field up

    A field is what one input column looks up, in all tables that it reads: an embedding and its first-order weight, or tables
    of id % m and id // m. Where one table holds the ids of many columns, each column is a field; where its columns hold ids of one
    kind they are one, a history. m_f is a constant of one row, which fusion takes into the biases of linear maps: the lookup, its
    columns of the first layer and the field's products with others at run time are gone, and so is a table that no other field reads.

    The importance of a field is how far the answers move on calibration (the example, without any), relative to their
    spread, when it alone becomes its mean; by "permutation", when its ids alone are shuffled between rows, the mean of three times. The least
    important go first; after each the next four are measured together with all that went. `fields` names those that go,
    whatever `keep` says, and `without` those that stay, both as changes name them.

    The model takes the same inputs. A change says whether the field's is still read by anything: if not, it need not be computed.
    Numbers that are no ids are not fields. Fields stay, each with its reason, whose histories are padded with rows of zeros, whose
    rows are not finite, or with lookups that have no other form (weighted bags, bags of different sizes); and, unless `fields`
    names them, those without which answers are more than half off.

    Raises `InputError` for other settings and for the name of no field, `TechniqueError` for a model that was not captured and for
    calibration that it does not take. Cost: of up to 64 batches, a run for each field and four for each that goes; by permutation three times that.

    Source: permutation importance as in Breiman, "Random forests", 2001; greedy backward elimination.

    Example:
        >>> PruneFields().exact, [step.keep for step in PruneFields.ladder()]
        (False, [0.9, 0.75, 0.5])
    """

    name: ClassVar[str] = "prune_fields"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    fitted: ClassVar[bool] = True
    cuts: ClassVar[bool] = True

    keep: float = 0.75
    by: By = "mean"
    fields: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_share(self, "keep")
        check_names(self, "fields", "without")
        check_choice(self, "by", By)

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:  # noqa: ARG002 - what went is in the changes
        """The less important half of what went, and again until it is one."""
        names = tuple(change.site for change in changes)
        halves = (len(names) >> k for k in range(1, len(names).bit_length()))
        return tuple(replace(self, fields=names[:count]) for count in halves)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """Nine in ten, three in four and half of the fields."""
        return tuple(cls(keep=keep) for keep in _LADDER)

    def apply(self, program: Program) -> Applied:
        """The graph without these fields; the program's own where all stay."""
        gm = graph_of(program, self)
        if reason := unsteady(gm):
            return Applied(gm, skipped=(Skip(RULE, "", reason),))
        features, batches = program.layout.features, batches_of(program)
        found = find_fields(gm, features, batches, self.name)
        before: tuple[str, ...] = gm.meta.get("pruned_fields", ())
        for setting in ("fields", "without"):
            check_known(self, setting, [*(field.name for field in found), *before], "field")
        able = [field for field in found if not field.reason and field.name not in (self.without or ())]
        if self.fields is not None:
            able = [field for field in able if field.name in self.fields]
        skipped = [Skip(RULE, field.name, field.reason) for field in found if field.reason]
        total = len(found) + len(before)
        count = min(len(able), self._count(total) - len(before)) if self.fields is None else len(able)
        if count < 1:
            if able:
                reason = f"of {total} fields {len(before)} went before: with keep={self.keep} no other goes"
                skipped.append(Skip(RULE, "", reason))
            return Applied(gm, (), tuple(skipped))
        if self.fields is None and gm.meta.get(_FAR):
            reason = "fields went before until answers would have been more than half off: no other goes"
            return Applied(gm, (), (*skipped, Skip(RULE, "", reason)))
        if count < len(able) and sum(count_rows(features, batch) or 1 for batch in batches) < 2:
            reason = "calibration has one row, on which no field is worth more than another"
            return Applied(gm, (), (*skipped, Skip(RULE, "", reason)))
        importance = _Importance(gm, batches[:: -(-len(batches) // _BATCHES)], features, self.by)
        # Who names fields has said what they may cost.
        chosen, reasons = _choose(importance, able, count, WORST if self.fields is None else math.inf)
        skipped += [Skip(RULE, name, reason) for name, reason in reasons.items()]
        if not chosen:
            return Applied(gm, (), tuple(skipped))
        made = copy_graph(gm)
        drop(made, [part for one in chosen for part in one.field.parts])
        forget_moved(made)
        made.meta["pruned_fields"] = (*before, *(one.field.name for one in chosen))
        if reasons:
            made.meta[_FAR] = True
        return Applied(made, tuple(_changes(made, chosen, features, self.by)), tuple(skipped))

    def _count(self, total: int) -> int:
        """How many of so many fields go."""
        return total - math.ceil(self.keep * total - 1e-9)


@dataclass(frozen=True)
class _Chosen:
    """A field that goes, how far the answers move for it alone, and for it and all before it."""

    field: Field
    alone: float
    together: float


class _Importance:
    """How far the answers move on these batches without a field."""

    def __init__(
        self,
        gm: fx.GraphModule,
        batches: Sequence[Sequence[Tensor]],
        features: Sequence[Feature],
        by: By,
    ) -> None:
        self._gm, self._batches, self._features, self.by = gm, batches, features, by
        self._right = answers(gm, batches)

    def of(self, field: Field, gone: Sequence[Part]) -> float:
        """Of one field, where these are gone already."""
        if self.by == "mean":
            return self.removed([*gone, *field.parts])
        left = self._gm if not gone else self._without(gone)
        shuffled = (_shuffled(self._batches, self._features, field.origin, seed) for seed in range(_SHUFFLES))
        return sum(self._moved(left, batches) for batches in shuffled) / _SHUFFLES

    def removed(self, parts: Sequence[Part]) -> float:
        """Of all these, as their means."""
        return self._moved(self._without(parts), self._batches)

    def _without(self, parts: Sequence[Part]) -> fx.GraphModule:
        alone = copy_graph(self._gm)
        drop(alone, parts)
        return alone

    def _moved(self, gm: fx.GraphModule, batches: Sequence[Sequence[Tensor]]) -> float:
        return furthest(answers(gm, batches), self._right)


def _choose(
    importance: _Importance, able: Sequence[Field], count: int, worst: float
) -> tuple[list[_Chosen], dict[str, str]]:
    """The least important fields, in the order in which they go; by its name, why the first stays without which answers are further off than `worst`."""
    alone = {field.name: importance.of(field, ()) for field in able}
    left = sorted(able, key=lambda field: alone[field.name])
    chosen: list[_Chosen] = []
    gone: list[Part] = []
    for _ in range(count):
        near = [importance.of(field, gone) if gone else alone[field.name] for field in left[:_NEAR]]
        place = near.index(min(near))
        field = left.pop(place)
        gone += field.parts
        together = near[place] if importance.by == "mean" else importance.removed(gone)
        if together > worst:
            off = f"be {together:.0%} off" if math.isfinite(together) else "not be finite"
            before = f" and the {len(chosen)} before it" if chosen else ""
            return chosen, {field.name: f"answers of the calibration would {off} without it{before}"}
        chosen.append(_Chosen(field, alone[field.name], together))
    return chosen, {}


def _shuffled(
    batches: Sequence[Sequence[Tensor]], features: Sequence[Feature], origin: Origin, seed: int
) -> list[list[Tensor]]:
    """The batches with these input columns shuffled between all of their rows, columns of one row together."""
    made = [list(batch) for batch in batches]
    for number in sorted({number for number, _ in origin}):
        axis = features[number].axis or 0
        columns = sorted(column for where, column in origin if where == number and column is not None)
        parts = [batch[number] for batch in batches]
        joined = torch.cat(parts, axis)
        order = torch.randperm(joined.shape[axis], generator=torch.Generator().manual_seed(seed))
        other = joined.index_select(axis, order)
        if columns:
            other = joined.index_copy(1, torch.tensor(columns), other[:, columns])
        for batch, part in zip(
            made, torch.split(other, [part.shape[axis] for part in parts], axis), strict=True
        ):
            batch[number] = part
    return made


def _changes(
    made: fx.GraphModule, chosen: Sequence[_Chosen], features: Sequence[Feature], by: str
) -> list[Change]:
    """What is said of each field that went."""
    read = Origins(made).whole(made.graph.output_node())
    constants = (constant(made, node) for node in made.graph.nodes)
    held = {identity(tensor) for tensor in constants if tensor is not None}
    # A table goes with the last field that reads it.
    last = {identity(part.table.tensor): one for one in chosen for part in one.field.parts}
    changes = []
    for number, one in enumerate(chosen):
        tables = {identity(part.table.tensor): part.table.tensor.nbytes for part in one.field.parts}
        freed = sum(size for key, size in tables.items() if key not in held and last[key] is one)
        lookups = sum(part.lookups for part in one.field.parts)
        still = one.field.origin & read
        detail = (
            (f"{words_of(still, features)} is still read" if still else "not read any more")
            + f": {lookups} lookup{'s' * (lookups > 1)} a row and {freed} bytes of tables less; "
            + f"{'shuffled' if by == 'permutation' else 'as its mean'} it moves the answers by {one.alone:.2g} of their spread"
            + (f", all up to it gone by {one.together:.2g}" if number or by == "permutation" else "")
        )
        added = sum(part.row.nbytes for part in one.field.parts)
        changes.append(Change(RULE, one.field.name, detail, added))
    return changes
