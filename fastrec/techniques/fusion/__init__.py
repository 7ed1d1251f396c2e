"""Graph fusion: exact rules that remove work and keep the answer, one rule per file.

`RULES` lists them in order. Each is a function that edits the graph it is given and returns its changes; `Fuse`
applies them until none has anything left to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, update_wrapper
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, fx

from ...budget import Budget
from ...errors import InputError
from ...graph import copy_graph, sweep
from ...program import Program
from ...quiet import quiet, reason_of
from ...rows import take_rows
from ..base import Applied, Change, Skip, Technique, graph_of
from .absorbed_attention import absorb_keys
from .bags import simplify_bags
from .chains import merge_chains
from .channel_reshapes import drop_channel_reshapes
from .common_subexpressions import merge_common
from .constants import fold_constants
from .contracted_heads import contract_heads
from .cross_layers import split_cross_layers
from .dot_products import multiply_by_vector
from .factored_products import factor_products
from .filter_products import multiply_filters
from .filters import filter_one_position
from .folded_lookups import FOLD_BYTES, fold_lookups
from .linears import merge_linears
from .masked_positions import skip_masked
from .matmuls import name_linears
from .no_ops import remove_no_ops
from .norms import fold_norms
from .once import compute_once
from .one_position import read_one_position
from .packed_columns import pack_columns
from .padded_positions import skip_padding
from .pair_selection import select_pairs
from .plain_calls import call_plainly
from .pointwise import drop_expands
from .select_parts import select_parts
from .shared_operands import share_operands
from .sliced_sums import sum_once
from .split_linears import split_linears
from .split_sums import split_sums
from .squared_lookups import look_up_norms
from .stacked_bags import stack_bags
from .stacked_lookups import stack_lookups
from .unsplit import unsplit

__all__ = ["PHASES", "RULES", "Fuse", "Rule"]

Rule = Callable[[fx.GraphModule], list[Change]]

PHASES: tuple[tuple[Rule, ...], ...] = (
    (
        remove_no_ops,
        fold_constants,
        merge_common,
        simplify_bags,
        name_linears,
        select_pairs,
        compute_once,
        select_parts,
        drop_expands,
        drop_channel_reshapes,
    ),
    (
        fold_norms,
        factor_products,
        split_cross_layers,
        contract_heads,
        merge_chains,
        merge_linears,
        read_one_position,
        absorb_keys,
        filter_one_position,
        look_up_norms,
        split_sums,
        split_linears,
        share_operands,
        multiply_by_vector,
    ),
    (multiply_filters,),
    (fold_lookups,),
    (skip_masked, skip_padding),
    (stack_lookups, stack_bags, pack_columns),
    (call_plainly,),
    (sum_once,),
)
"""Every rule, in order of application: what is known of the values, what removes work, what is worth memory, and
how the rest lies in it.

A phase is over when none of its rules applies; what it changed goes through those before it again.
"""

RULES: tuple[Rule, ...] = tuple(rule for phase in PHASES for rule in phase)
"""Every rule, in order of application."""

TRADES: tuple[Rule, ...] = (
    multiply_filters,
    factor_products,
    split_cross_layers,
    split_linears,
    fold_lookups,
    skip_masked,
    skip_padding,
)
"""Rules that make more calls of less work, or more work that more backends do: what they gain depends on the number of rows."""

_ROUNDS = 8


@dataclass(frozen=True)
class Fuse(Technique):
    """Rewrite the captured graph by exact rules until none applies.

    `rules` names those to use, in the order of `RULES`; None means all; `without` those to leave out.
    `fold_bytes` is what folded tables may add to the model, 0 to fold none. After each rule that changed something
    the graph is run beside the one before, on the example and on single rows of it; a rule whose graph answers
    differently, or that fails, is rolled back and reported as skipped.

    Raises `InputError` for the name of no rule or a negative size, `TechniqueError` for a model that was not
    captured. Cost: seconds.

    Example:
        >>> Fuse().exact, Fuse(rules=("simplify_bags",)).rules
        (True, ('simplify_bags',))
    """

    name: ClassVar[str] = "fuse"
    level: ClassVar[Literal["module", "graph"]] = "graph"

    rules: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    fold_bytes: int = FOLD_BYTES

    def __post_init__(self) -> None:
        known = [rule.__name__ for rule in RULES]
        for setting, names in (("rules", self.rules or ()), ("without", self.without)):
            for name in names:
                if name not in known:
                    raise InputError(
                        f"Fuse({setting}=...) has no rule {name!r:.80}; known are {', '.join(known)}"
                    )
        if self.fold_bytes < 0:
            raise InputError(f"Fuse(fold_bytes=...) takes 0 or more, got {self.fold_bytes}")

    @property
    def exact(self) -> bool:
        """Always."""
        return True

    @classmethod
    def asked_by(cls, budget: Budget | None) -> Self:
        """Where tables have a limit, none is made larger."""
        return cls() if budget is None or budget.bytes is None else cls(fold_bytes=0)

    def apply(self, program: Program) -> Applied:
        """The rewritten graph; the program's own when no rule applies."""
        given = graph_of(program, self)
        work = _Rewriting(given, _probes(program))
        chosen = [[self._set(rule) for rule in phase if self._uses(rule)] for phase in PHASES]
        phase = 0
        # Once for all rules: silence costs more than most of them.
        with quiet():
            for _ in range(_ROUNDS * len(chosen)):
                phase = 0 if work.exhaust(chosen[phase]) and phase else phase + 1
                if phase == len(chosen):
                    break
        return Applied(work.graph, tuple(work.changes), (*work.skipped.values(), *unsplit(work.graph)))

    def _uses(self, rule: Rule) -> bool:
        return (self.rules is None or rule.__name__ in self.rules) and rule.__name__ not in self.without

    def alternatives(self, changes: tuple[Change, ...]) -> dict[str, Technique]:
        """The same without each rule that trades calls for work, where it was applied: a trade to be measured."""
        done = {change.rule.replace(" ", "_") for change in changes}
        names = [rule.__name__ for rule in TRADES if rule.__name__ in done]
        return {
            f"without {name.replace('_', ' ')}": replace(self, without=(*self.without, name))
            for name in names
        }

    def _set(self, rule: Rule) -> Rule:
        """The rule with its settings."""
        if rule is not fold_lookups:
            return rule
        return update_wrapper(partial(fold_lookups, limit=self.fold_bytes), fold_lookups)


class _Rewriting:
    """A graph as rules are applied to it, and what became of them."""

    def __init__(self, graph: fx.GraphModule, probes: list[list[Tensor]]) -> None:
        self.graph = graph
        self.changes: list[Change] = []
        self.skipped: dict[str, Skip] = {}
        self._probes = probes
        # The copy that a rule found nothing to do in serves the next: most of what a copy costs is compiling it.
        self._copy: fx.GraphModule | None = None

    def exhaust(self, rules: list[Rule]) -> bool:
        """Apply these rules in turn until none has anything left to do; whether any had."""
        start = len(self.changes)
        for _ in range(_ROUNDS):
            before = len(self.changes)
            for rule in rules:
                if rule.__name__ not in self.skipped:
                    self._apply(rule)
            if len(self.changes) == before:
                break
        return len(self.changes) > start

    def _apply(self, rule: Rule) -> None:
        trial, self._copy = self._copy or copy_graph(self.graph), None
        nodes = len(trial.graph.nodes)
        try:
            found = rule(trial)
            if not found:
                if len(trial.graph.nodes) != nodes:
                    # What it wrote down while looking goes.
                    trial.graph.eliminate_dead_code()
                self._copy = trial
                return
            sweep(trial)
            reason = _difference(self.graph, trial, self._probes)
        except Exception as error:  # noqa: BLE001 - rolled back, and the reason reported
            found, reason = [], reason_of(error)
        if reason:
            site = found[0].site if found else ""
            self.skipped[rule.__name__] = Skip(rule.__name__.replace("_", " "), site, reason)
        else:
            self.graph = trial
            self.changes += found


def _probes(program: Program) -> list[list[Tensor]]:
    """Small batches to compare graphs on: some rows of the example backwards, and one row alone."""
    features, rows = program.layout.features, program.layout.rows
    tensors = list(program.batch)
    if rows is None:
        return [tensors]
    some = torch.arange(min(rows, 64)).flip(0)
    return [take_rows(features, tensors, order) for order in (some, some[:1])]


def _difference(before: fx.GraphModule, after: fx.GraphModule, probes: list[list[Tensor]]) -> str:
    """Why the two graphs are not the same function, or nothing."""
    for tensors in probes:
        with torch.no_grad():
            old, new = before(*tensors), after(*tensors)
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            if left.shape != right.shape or left.dtype != right.dtype:
                return f"output {index} would become {tuple(right.shape)} {right.dtype}"
            if left.is_floating_point():
                finite = left[left.isfinite()]
                scale = float(finite.abs().max()) if finite.numel() else 0.0
                alike = torch.allclose(right, left, rtol=1e-4, atol=1e-5 * scale + 1e-30, equal_nan=True)
            else:
                alike = torch.equal(left, right)
            if not alike:
                return f"output {index} would differ"
    return ""
