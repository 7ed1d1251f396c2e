"""What a cut has to be: the same model with the columns of what is gone set to zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.graph import add_constant
from fastrec.program import Program
from fastrec.techniques.pruning.graph_units import GraphUnits
from fastrec.techniques.pruning.units import Prunable
from tests.checks import assert_as_good, flat, unplaced

from .models import made

__all__ = ["assert_cut_is_mask", "captured", "drawn", "graph_units", "masked", "reasons_of", "units_of"]


def captured(model: nn.Module, *batch: Any, calibration: tuple[Any, ...] = ()) -> Program:
    """The captured program, with flat calibration batches."""
    program = Program.read(model.eval(), batch if len(batch) > 1 else batch[0])
    made = capture(program)
    return Program(made.model, made.batch, made.layout, made.entry, tuple(calibration))


@cache
def graph_units(name: str) -> GraphUnits:
    """The units of one of the `MODELS`, captured."""
    model, batch = made(name)
    return GraphUnits(captured(model, *batch(5)))


def units_of(units: Prunable) -> dict[str, int]:
    """The width of each group that can be cut."""
    return {group.site: group.width for group in units.groups if not group.reason}


def reasons_of(units: Prunable) -> dict[str, str]:
    """Why the others stay."""
    return {group.site: unplaced(group.reason) for group in units.groups if group.reason}


def drawn(units: Prunable, seed: int = 0) -> dict[str, Tensor]:
    """Some of the units of each group, at least one."""
    rng = torch.Generator().manual_seed(seed)
    found = {}
    for site, width in units_of(units).items():
        count = int(torch.randint(1, width, (), generator=rng)) if width > 1 else 1
        found[site] = torch.randperm(width, generator=rng)[:count].sort().values
    return found


def masked(units: GraphUnits, kept: Mapping[str, Tensor]) -> fx.GraphModule:
    """The whole graph with zeros in the columns that read what is not kept."""
    gm: Any = units.without({}, {}).model
    for node in list(gm.graph.nodes):
        one = units.maps.get(node.name)
        if one is not None and kept.keys() & one.places.keys():
            stays = torch.zeros(one.weight.shape[1])
            stays[one.left(kept)] = 1
            node.update_arg(1, add_constant(gm, "masked", one.weight * stays))
    gm.recompile()
    return gm  # type: ignore[no-any-return]


def assert_cut_is_mask(units: GraphUnits, kept: Mapping[str, Tensor], batch: list[Tensor]) -> fx.GraphModule:
    """The cut graph answers as the masked one, which is told in float64 as well; its maps are narrower."""
    cut: Any = units.without(kept, {}).model
    for node in cut.graph.nodes:
        one = units.maps.get(node.name)
        if one is not None:
            rows = len(kept[one.writes]) if one.writes is not None and one.writes in kept else len(one.weight)
            assert tuple(node.args[1].meta["val"].shape) == (rows, len(one.left(kept))), node.name
    whole = masked(units, kept)
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in batch]
    with torch.no_grad():
        got, old = flat(cut(*batch)), flat(whole(*batch))
        right = flat(copy.deepcopy(whole).double()(*wide))
    assert_as_good(got, old, right)
    return cut  # type: ignore[no-any-return]
