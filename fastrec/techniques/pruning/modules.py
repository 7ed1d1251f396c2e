"""Hidden units of a model that could not be captured, as its modules hold them: which there are, and the model without some.

A unit is an output of a plain `nn.Linear` (O, I): a row of its weight, and the columns of those that read it. Which
these are is found by marks (`marks`), and trusted only where cutting equals masking: the model without the rows and
columns answers as the one whose columns are zero. Modules are cut in place, on a draft, by torch-pruning's functions for
one layer, so that they are the same ones for whoever holds them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...errors import InputError, TechniqueError
from ...program import Program
from ...quiet import reason_of
from ...rows import take_rows
from ..base import Skip
from ..quantization.linear_modules import flat_batches, linear_modules, watch
from .marks import Marks, Reach
from .units import RULE

__all__ = ["ModuleGroup", "find_units", "replace_weights", "seen_by", "without"]

Columns = tuple[tuple[str, tuple[int, ...]], ...]
"""Paths of modules, with the column of each unit; a path occurs more than once where a unit reaches several columns."""

# At most so many rows of the example carry marks, and are compared for each group alone.
_MARKED = 64
_FEW = 3


@dataclass(frozen=True)
class ModuleGroup:
    """One group of hidden units of a model's modules.

    `site` is the path of the `nn.Linear` whose outputs they are, `width` their number; `readers` are the maps that read
    them, with the column of the weight for each unit, and `beside` the `BatchNorm1d` and `PReLU` modules they pass, with the
    channel of each. `coupled` are other maps whose outputs go into the same columns, unit by unit: they lose the same.
    """

    site: str
    width: int
    readers: Columns
    beside: Columns = ()
    coupled: tuple[str, ...] = ()


def find_units(program: Program) -> tuple[list[ModuleGroup], list[Skip]]:
    """The hidden units of a model that can be cut, and the linear maps whose outputs cannot with their reasons.

    A map's units can be cut where each reaches columns of its own in plain `nn.Linear` modules whose weights nobody but
    their own call reads, the same at every call, and nothing else; and where the answers are the same with some of them cut
    and with their columns masked, on rows of the example and on each calibration batch. What a batch unlike all of these
    would do with them is not known. Cost: some 2 log2(width) runs of at most 64 rows for each map and a few for each group,
    and seven runs of the model for each calibration batch.

    Example:
        >>> tower = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
        >>> find_units(Program.read(tower, torch.randn(8, 4)))
        ([ModuleGroup(site='0', width=3, readers=(('2', (0, 1, 2)),), beside=(), coupled=())], [])
    """
    modules = linear_modules(program.model)
    watched = watch(program, modules)
    if isinstance(watched, str):
        return [], [Skip(RULE, "", watched)]
    seen, unfit = watched
    unfit |= {name: one.reason for name, one in seen.items() if one.reason}
    unfit = {**_tied(program.model), **unfit}
    reasons = dict(unfit)
    batch = flat_batches(replace(program, calibration=()))[0]
    some = _some(program, batch, _MARKED)
    marks = Marks(program, list(seen), some)
    found: dict[str, Reach] = {}
    for name, module in modules.items():
        if name in unfit or module.out_features < 2:
            continue
        reach = marks.reach(name)
        if isinstance(reach, str):
            reasons[name] = reach
        elif not any(path in seen for path in reach):
            reasons[name] = "no linear map that can be cut reads its units"
        elif barred := [path for path in reach if path in unfit]:
            reasons[name] = f"{barred[0]} reads its units, and of that {unfit[barred[0]]}"
        else:
            found[name] = reach
    if not marks.lost and marks.remembers():
        return [], [Skip(RULE, "", "the model answers otherwise after it was given marks: it remembers them")]
    groups = _groups(program.model, found, reasons)
    sound = _sound(program, groups, [some, _some(program, batch, _FEW)], reasons)
    everywhere = flat_batches(program)
    if _wrong(program, sound, everywhere):
        sound = _sound(program, sound, everywhere, reasons)
        if reason := _wrong(program, sound, everywhere):
            reasons |= dict.fromkeys(_sites(sound), f"with all others: {reason}")
            sound = []
    order = [name for name in modules if name in reasons and modules[name].out_features > 1]
    return sound, [Skip(RULE, name, reasons[name]) for name in order]


def seen_by(program: Program, units: Iterable[ModuleGroup]) -> dict[str, Tensor]:
    """Rows (n, I) of what each map that reads these units is given on the calibration, spread over it, by the map's path.

    Maps that no row reaches are left out. Raises `TechniqueError` where `find_units` finds nothing as the model writes to its
    tensors. Cost: a run of the model for each batch.
    """
    readers = {path for group in units for path, _ in group.readers}
    watched = watch(program, readers)
    if isinstance(watched, str):
        raise TechniqueError(watched, technique="prune_neurons")
    return {path: seen.rows() for path, seen in watched[0].items() if seen.kept}


def without(program: Program, units: Iterable[ModuleGroup], kept: Mapping[str, Tensor]) -> nn.Module:
    """A draft of the model with only these units of each site: their numbers (n,), sorted; sites not named keep all.

    Tensors that are not cut are shared with the program's model. Raises `InputError` for a site of none of these groups, and
    for numbers that are none of its units, in another order, twice, or none at all. Cost: a copy of what is left of the
    weights that are cut.

    Example:
        >>> program = Program.read(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)).eval(), torch.randn(8, 4))
        >>> units, _ = find_units(program)
        >>> list(without(program, units, {"0": torch.tensor([0, 2])}))
        [Linear(in_features=4, out_features=2, bias=True), Linear(in_features=2, out_features=1, bias=True)]
    """
    import torch_pruning

    units = list(units)
    if unknown := sorted(kept.keys() - {group.site for group in units}):
        raise InputError(f"{unknown[0]} is the site of none of these units", feature=unknown[0])
    model = program.draft().eval()
    modules = dict(model.named_modules())
    rows: dict[str, list[int]] = {}
    columns: dict[str, list[int]] = defaultdict(list)
    channels: dict[str, list[int]] = defaultdict(list)
    for group in units:
        if group.site in kept:
            gone = _gone(group, kept[group.site])
            rows |= dict.fromkeys((group.site, *group.coupled), gone)
            # All that leaves a module leaves it at once: what is left has other numbers.
            for path, at in group.readers:
                columns[path] += [at[unit] for unit in gone]
            for path, at in group.beside:
                channels[path] += [at[unit] for unit in gone]
    for path, places in rows.items():
        _cut(torch_pruning.prune_linear_out_channels, modules[path], places)
    for path, places in columns.items():
        _cut(torch_pruning.prune_linear_in_channels, modules[path], places)
    for path, places in channels.items():
        norm = isinstance(modules[path], nn.BatchNorm1d)
        cutter = (
            torch_pruning.prune_batchnorm_out_channels if norm else torch_pruning.prune_prelu_out_channels
        )
        _cut(cutter, modules[path], places)
    return model


def replace_weights(model: nn.Module, weights: Mapping[str, tuple[Tensor, Tensor | None]]) -> None:
    """Gives maps of a draft, in place, a weight (O, I) and a bias (O,) of their own, or none; nothing is written to the old.

    Raises `InputError` for another shape.
    """
    for path, (weight, bias) in weights.items():
        module = model.get_submodule(path)
        assert isinstance(module, nn.Linear)
        if weight.shape != module.weight.shape or (bias is not None and bias.shape != weight.shape[:1]):
            got = f"weight {tuple(weight.shape)}, bias {None if bias is None else tuple(bias.shape)}"
            raise InputError(f"{path} takes a weight {tuple(module.weight.shape)}, got {got}", feature=path)
        like = module.weight
        module.weight = _parameter(weight, like)
        module.register_parameter("bias", None if bias is None else _parameter(bias, like))


def _parameter(numbers: Tensor, like: Tensor) -> nn.Parameter:
    made = numbers.detach().to(like.dtype, copy=True, memory_format=torch.contiguous_format)
    return nn.Parameter(made, requires_grad=like.requires_grad)


def _gone(group: ModuleGroup, kept: Tensor) -> list[int]:
    """The units that are not kept."""
    numbers = kept.tolist()
    if not numbers or numbers != sorted({*numbers} & {*range(group.width)}):
        raise InputError(
            f"{group.site} has units 0 to {group.width - 1}: expected some of them, sorted, each once, got {numbers}",
            feature=group.site,
        )
    return sorted({*range(group.width)} - {*numbers})


def _cut(cutter: Callable[[nn.Module, list[int]], object], module: nn.Module, places: Sequence[int]) -> None:
    """Cuts a module in place by a function of torch-pruning.

    That takes a place that is not there for one that is gone, makes parameters that ask for a gradient whatever the old did,
    and cuts gradients as well; the old tensors it leaves as they are.
    """
    if not places:
        return
    before = dict(module.named_parameters(recurse=False))
    with torch.no_grad():
        cutter(module, list(places))
    for name, parameter in module.named_parameters(recurse=False):
        if parameter is not before[name]:
            parameter.requires_grad_(before[name].requires_grad).grad = None


def _tied(model: nn.Module) -> dict[str, str]:
    """Linear maps of which another module holds a tensor as well, with that as the reason."""
    holders: Counter[int] = Counter()
    for module in model.modules():
        holders.update(id(tensor) for tensor in module._parameters.values() if tensor is not None)
    return {
        name: "its weight or bias is another module's as well"
        for name, module in linear_modules(model).items()
        if any(holders[id(tensor)] > 1 for tensor in module._parameters.values() if tensor is not None)
    }


def _groups(model: nn.Module, found: Mapping[str, Reach], reasons: dict[str, str]) -> list[ModuleGroup]:
    """Units that go together; adds the reasons of maps that share columns with others in part."""
    owners: dict[tuple[str, int], list[str]] = defaultdict(list)
    for site, reach in found.items():
        for path, at in reach.items():
            for column in at.flatten().tolist():
                owners[path, column].append(site)
    partners: dict[str, set[str]] = defaultdict(set)
    for sites in owners.values():
        for site in sites:
            partners[site].update(sites)
    linears, order = linear_modules(model), list(found)
    groups = []
    for site, reach in found.items():
        others = sorted(partners[site] - {site}, key=order.index)
        if apart := [other for other in others if not _alike(reach, found[other], linears)]:
            reasons[site] = f"{apart[0]} goes into some of the same columns, and not into all alike"
        elif all(order.index(site) < order.index(other) for other in others):
            merged: Reach = {}
            for one in (site, *others):
                merged |= found[one]
            columns = [(path, tuple(each)) for path, at in merged.items() for each in at.t().tolist()]
            readers = tuple(each for each in columns if each[0] in linears)
            beside = tuple(each for each in columns if each[0] not in linears)
            groups.append(ModuleGroup(site, linears[site].out_features, readers, beside, tuple(others)))
    return groups


def _alike(left: Reach, right: Reach, linears: Mapping[str, nn.Linear]) -> bool:
    """Whether these units are read together, unit by unit, whatever each passes on its way."""
    both = left.keys() & right.keys()
    one = {path for path in left if path in linears} == {path for path in right if path in linears}
    return one and all(torch.equal(left[path], right[path]) for path in both)


def _some(program: Program, batch: list[Tensor], most: int) -> list[Tensor]:
    """At most so many rows of a flat batch, spread over it; all where nothing counts rows."""
    rows = program.layout.rows or 0
    if rows <= most:
        return batch
    return take_rows(program.layout.features, batch, torch.linspace(0, rows - 1, most).long())


def _sound(
    program: Program, groups: Iterable[ModuleGroup], batches: Sequence[list[Tensor]], reasons: dict[str, str]
) -> list[ModuleGroup]:
    """Those whose cut is a mask on the batches; adds the reasons of the others."""
    sound = []
    for group in groups:
        if reason := _wrong(program, [group], batches):
            reasons |= dict.fromkeys(_sites([group]), reason)
        else:
            sound.append(group)
    return sound


def _sites(groups: Iterable[ModuleGroup]) -> list[str]:
    return [site for group in groups for site in (group.site, *group.coupled)]


def _wrong(program: Program, groups: Sequence[ModuleGroup], batches: Sequence[list[Tensor]]) -> str:
    """Why cutting these units is not masking them on some of the batches, or nothing.

    Every second unit is cut, then the others, then the first alone: code that counts on an even number fails at one of them.
    """
    compared = not groups
    for part in (slice(0, None, 2), slice(1, None, 2), slice(1, None)):
        kept = {group.site: torch.arange(group.width)[part] for group in groups}
        cut = program.with_model(without(program, groups, kept))
        masked = program.with_model(_masked(program, groups, kept))
        for batch in batches:
            try:
                with torch.random.fork_rng(devices=()):
                    right = masked.answers(batch)
            except Exception:  # noqa: BLE001, S112 - so many rows the model itself may not take
                continue
            compared = True
            try:
                with torch.random.fork_rng(devices=()):
                    got = cut.answers(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the model has a use of its units that was not seen
                return f"without some of its units the model fails: {reason_of(error)}"
            if len(got) != len(right) or not all(map(_near, got, right)):
                return "cutting its units is not masking them: the model computes with their number, or uses them unseen"
    return "" if compared else "the model fails where its units are masked"


def _masked(program: Program, groups: Iterable[ModuleGroup], kept: Mapping[str, Tensor]) -> nn.Module:
    """A draft in which nobody reads the units that are not kept."""
    model = program.draft().eval()
    for group in groups:
        gone = _gone(group, kept[group.site])
        for path, places in group.readers:
            module = model.get_submodule(path)
            assert isinstance(module, nn.Linear)
            weight = module.weight.detach().clone()
            weight[:, [places[unit] for unit in gone]] = 0
            replace_weights(model, {path: (weight, module.bias)})
    return model


def _near(got: Tensor, right: Tensor) -> bool:
    """Whether two answers are the same up to float rounding."""
    if got.shape != right.shape or got.dtype != right.dtype:
        return False
    if not right.is_floating_point():
        return torch.equal(got, right)
    finite = right[right.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(got, right, rtol=1e-4, atol=1e-5 * scale + 1e-30, equal_nan=True)
