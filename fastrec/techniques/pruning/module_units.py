"""Hidden units of a model that could not be captured, as its modules hold them, for `PruneNeurons`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...program import Program
from ..base import Skip
from ..quantization.linear_modules import answers_to, flat_batches, linear_modules
from .heard import hear
from .modules import find_units, replace_weights, seen_by, without
from .slopes import module_slopes
from .units import RULE, Fits, Group, Kept, LinearMap, Prunable
from .widths import NO_UNITS

__all__ = ["ModuleUnits"]

_DONE = "units_pruned"
"""What a map whose units were looked at has among its plain attributes, and its copies with it."""


class ModuleUnits(Prunable):
    """Units that marks show in the model's own code: a site is the path of a module."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self.batches = flat_batches(program)
        found, skipped = find_units(program)
        self.skipped = tuple(skip for skip in skipped if not skip.site)
        modules = linear_modules(program.model)
        groups: dict[str, tuple[str, ...]] = {skip.site: (skip.site,) for skip in skipped if skip.site}
        groups |= {one.site: (one.site, *one.coupled) for one in found}
        why = {skip.site: skip.reason for skip in skipped}
        for site, writers in groups.items():
            if any(vars(modules[name]).get(_DONE) for name in writers):
                why[site] = "its units are pruned already"
        self.groups = [
            Group(site, modules[site].out_features, groups[site], why.get(site, ""))
            for site in modules
            if site in groups
        ]
        if not self.groups and not self.skipped:
            self.skipped = (Skip(RULE, "", NO_UNITS),)
        self._found = {one.site: one for one in found if one.site not in why}
        self.maps = self._maps(program, modules)
        # In the order in which the model calls them, in which cuts are made up for.
        called = list(self.maps)
        self.groups.sort(key=lambda group: called.index(group.site) if group.site in called else len(called))

    def _maps(self, program: Program, modules: dict[str, nn.Linear]) -> dict[str, LinearMap]:
        """By name, in the order in which they are called."""
        writes = {name: one.site for one in self._found.values() for name in (one.site, *one.coupled)}
        reads: dict[str, dict[str, list[tuple[int, ...]]]] = {name: {} for name in writes}
        for one in self._found.values():
            for name, columns in one.readers:
                reads.setdefault(name, {}).setdefault(one.site, []).append(columns)
        rows = _rows_of(program, reads)
        order = sorted(reads, key=[*rows, *reads].index)
        return {
            name: LinearMap(
                name,
                modules[name].weight.detach(),
                {site: torch.tensor(columns).t() for site, columns in places.items()},
                writes.get(name),
                rows[name] * modules[name].weight.numel(),
                name,
            )
            for name, places in ((name, reads[name]) for name in order)
        }

    def rows(self, program: Program, groups: Iterable[Group]) -> dict[str, Tensor]:
        """What each map that reads these units is given."""
        return seen_by(program, [self._found[group.site] for group in groups])

    def sloped(self, groups: Iterable[Group]) -> dict[str, tuple[Tensor, Tensor]]:
        """What each map that reads these units is given, and the slopes of the answers by it."""
        return module_slopes(self.program, {one.name for group in groups for one in self.readers(group)})

    def without(self, kept: Kept, fits: Fits) -> Program:
        """The program with these units and weights."""
        model = without(self.program, self._found.values(), kept)
        modules = linear_modules(model)
        made = {}
        for name, (weight, shift) in fits.items():
            site, bias = self.maps[name].writes, modules[name].bias
            if site is not None and site in kept:
                weight, shift = weight[kept[site]], shift[kept[site]]
            shift = shift.double() if bias is None else bias.detach().double() + shift
            made[name] = weight, shift if bias is not None or bool(shift.any()) else None
        replace_weights(model, made)
        return self.program.with_model(model)

    def finished(self, kept: Kept, fits: Fits, seen: Iterable[Group]) -> tuple[nn.Module, dict[str, int]]:
        """A draft with these units and weights, in which maps whose units were seen say so."""
        model = self.without(kept, fits).model
        modules = dict(model.named_modules())
        for group in seen:
            for name in group.writers:
                setattr(modules[name], _DONE, True)
        old = {id(tensor) for tensor in (*self.program.model.parameters(), *self.program.model.buffers())}
        made = {}
        for site in kept:
            one = self._found[site]
            paths = (one.site, *one.coupled, *(path for path, _ in (*one.readers, *one.beside)))
            tensors = [
                held for path in paths for held in (*modules[path].parameters(), *modules[path].buffers())
            ]
            fresh = {id(tensor): tensor.nbytes for tensor in tensors if id(tensor) not in old}
            made[site] = sum(fresh.values())
            old |= fresh.keys()
        return model, made


def _rows_of(program: Program, names: Iterable[str]) -> Counter[str]:
    """How many rows each of these maps is given on the example."""
    counts: Counter[str] = Counter()

    def count(name: str, x: Tensor) -> Tensor:
        counts[name] += x.numel() // max(x.shape[-1], 1)
        return x

    private = program.private()
    hear(private.model, names, count)
    answers_to(private, [private.flat(private.batch)])
    return counts
