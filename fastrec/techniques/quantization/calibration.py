"""What 8 bits would do to each linear map of a graph, seen on calibration batches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import TechniqueError
from ...graph import add_constant, constant, copy_graph, is_call, sweep, value
from ...ops.linears import INT8_LINEAR
from ...program import Program
from ..base import Skip
from ..fusion.matmuls import name_linears
from .pieces import take_apart
from .ranges import Range, best_range, code_weight
from .sensitivity import moved_by
from .smoothing import smooth

__all__ = [
    "Layer",
    "batches_of",
    "bias_of",
    "calibrate",
    "in_int8",
    "inputs_of",
    "linear_maps",
    "named",
    "sensitivities",
]

aten = torch.ops.aten

_TECHNIQUE = "quantize_linears"
_RULE = "quantize linears"
# Rows kept of each input: as many as its width leaves room for.
_ROWS = (64, 2048)
_ELEMENTS = 2**20
# An answer further off than this is no answer; sensitivities are a matter of the budget below it.
_WORST = 0.5


@dataclass(frozen=True)
class Layer:
    """A linear map at a site: how many weights it has, the range its input is rounded in, and whether it was evened."""

    site: str
    weights: int
    range: Range
    evened: bool = False


def named(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy in which products with constant matrices are linear maps."""
    copy = copy_graph(gm)
    name_linears(copy)
    sweep(copy)
    return copy


def linear_maps(gm: fx.GraphModule) -> list[fx.Node]:
    """The linear maps of float32 activations by a constant float32 matrix, their bias absent or of one dimension."""
    found = []
    for node in gm.graph.nodes:
        if not is_call(node, aten.linear.default):
            continue
        weight, bias = constant(gm, node.args[1]), bias_of(node)
        if (
            weight is not None
            and weight.ndim == 2
            and {weight.dtype, value(node.args[0]).dtype, value(node).dtype} == {torch.float32}
            and (bias is None or (value(bias).dtype is torch.float32 and value(bias).ndim == 1))
        ):
            found.append(node)
    return found


def calibrate(
    gm: fx.GraphModule, nodes: Sequence[fx.Node], batches: Iterable[Sequence[Tensor]]
) -> tuple[list[Layer], list[Skip]]:
    """The best range of each of these linear maps on the batches, and those left alone with their reasons.

    Channels of their inputs are made even in `gm` where that helps (see `smoothing`), which changes none of its answers.
    At most 2,048 rows of each input are looked at, spread over the batches. Raises `TechniqueError` for values that
    are not finite. Cost: a run of the graph for each batch, and some products of each layer with these rows.
    """
    layers: list[Layer] = []
    skips: list[Skip] = []
    seen = inputs_of(gm, [node.args[0] for node in nodes], list(batches))  # type: ignore[misc]  # the first argument of a linear map is a node
    evened = smooth(gm, seen)
    for node in nodes:
        weight, x = constant(gm, node.args[1]), seen[node.args[0]]  # type: ignore[index]  # an argument of a node is of any type
        assert weight is not None
        if not bool(x.isfinite().all()):
            raise TechniqueError(
                f"calibration gave values that are not finite at the input of {node.name} "
                f"({int((~x.isfinite()).sum())} of {x.numel()}): give batches without NaN and infinities, or leave "
                f"it as it is, without=({node.name!r},)",
                technique=_TECHNIQUE,
                site=node.name,
            )
        made, reason = None, ""
        if not bool(weight.isfinite().all()):
            reason = "its weights are not all finite"
        elif not len(x):
            reason = "no row of the calibration reaches it"
        elif (made := best_range(x, weight)) is None:
            reason = "its input is zero throughout the calibration: there is no range to round in"
        elif not made.error <= _WORST:
            reason = f"8 bits would put its output {made.error:.0%} off on the calibration"
        if made is None or reason:
            skips.append(Skip(_RULE, node.name, reason))
        else:
            layers.append(Layer(node.name, weight.numel(), made, node.args[0] in evened))
    return layers, skips


def in_int8(gm: fx.GraphModule, layers: Iterable[Layer]) -> dict[str, int]:
    """Puts these layers into 8 bits, in place, under their names; gives the bytes of the constants each adds.

    A ReLU in front of codes that begin at zero does what their clamping does: it is read past. Layers of one weight
    keep one.
    """
    names = {node.name: node for node in gm.graph.nodes}
    made: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
    added: dict[str, int] = {}
    for layer in layers:
        node = names[layer.site]
        x, held, bias = node.args[0], node.args[1], bias_of(node)
        added[layer.site] = 0
        if held not in made:
            weight = constant(gm, held)
            assert weight is not None
            codes, scale = code_weight(weight)
            made[held] = (
                add_constant(gm, f"{layer.site}_codes", codes.contiguous()),
                add_constant(gm, f"{layer.site}_scale", scale),
            )
            added[layer.site] = codes.nbytes + scale.nbytes
        if layer.range.zero == 0 and is_call(x, aten.relu.default):
            x = x.args[0]
        node.target = INT8_LINEAR
        node.args = (x, *made[held], layer.range.scale, layer.range.zero, bias)
        node.kwargs = {}
    take_apart(gm)
    sweep(gm)
    return added


def sensitivities(program: Program, sites: Collection[str] | None = None) -> dict[str, float]:
    """How far the answer of a captured program moves when one linear map alone is in 8 bits, for each that can be.

        |y' - y| / |y - mean of y|

    over the calibration batches, the largest of the outputs; `sites` names the maps to look at. The first to leave
    as they are, where a budget is broken, are those with the largest. Raises `TechniqueError` as `calibrate` does.
    Cost: a run of the calibration for each.

    Example:
        >>> from fastrec.capture import capture
        >>> tower = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)).eval()
        >>> list(sensitivities(capture(Program.read(tower, torch.randn(64, 32)))))
        ['linear', 'linear_1']
    """
    if not isinstance(program.model, fx.GraphModule):
        raise TechniqueError("looks at captured graphs: capture the program first", technique=_TECHNIQUE)
    gm = named(program.model)
    batches = batches_of(program)
    nodes = [node for node in linear_maps(gm) if sites is None or node.name in sites]
    layers, _ = calibrate(gm, nodes, batches)
    return moved_by(gm, batches, {layer.site: partial(in_int8, layers=[layer]) for layer in layers})


def batches_of(program: Program) -> tuple[Sequence[Tensor], ...]:
    """The calibration batches of a captured program; its example where it has none."""
    return program.calibration or (program.batch,)


def bias_of(node: fx.Node) -> Any:
    """The bias of a linear map, None where it has none."""
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


def inputs_of(
    gm: fx.GraphModule, sources: Iterable[fx.Node], batches: Sequence[Sequence[Tensor]]
) -> dict[fx.Node, Tensor]:
    """Rows (n, I) of the values of these nodes, as many of each batch."""
    kept: dict[fx.Node, list[Tensor]] = {source: [] for source in sources}
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        for batch in batches:
            _Watching(gm, kept, len(batches)).run(*batch)
    return {source: torch.cat(rows) for source, rows in kept.items()}


class _Watching(fx.Interpreter):
    """Runs a graph and keeps rows of some values."""

    def __init__(self, gm: fx.GraphModule, kept: dict[fx.Node, list[Tensor]], batches: int) -> None:
        super().__init__(gm)
        self._kept, self._batches = kept, batches

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._kept:
            rows = result.reshape(-1, result.shape[-1])
            most = min(max(_ELEMENTS // max(rows.shape[1], 1), _ROWS[0]), _ROWS[1])
            most = -(-most // self._batches)
            if len(rows) > most:
                rows = rows[torch.linspace(0, len(rows) - 1, most).long()]
            self._kept[n].append(rows.clone())
        return result
