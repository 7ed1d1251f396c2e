"""What 8 bits would do to each linear map, seen on calibration batches; graphs are looked at here, modules in `linear_modules`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import TechniqueError
from ...graph import add_constant, constant, copy_graph, is_call, sweep, value
from ...ops.linears import INT8_LINEAR
from ...program import Program
from ..base import Skip
from ..fusion.matmuls import name_linears
from .ranges import Range, best_range, code_weight
from .smoothing import smooth

__all__ = [
    "RULE",
    "Layer",
    "batches_of",
    "calibrate",
    "evenly",
    "in_int8",
    "inputs_of",
    "linear_maps",
    "moved",
    "named",
    "range_of",
    "rows_kept",
    "sensitivities",
]

aten = torch.ops.aten

RULE = "quantize linears"
"""What skips and changes of these techniques are called."""

_TECHNIQUE = "quantize_linears"
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
        weight, bias = constant(gm, node.args[1]), _bias(node)
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
        made = range_of(node.name, x, weight)
        if isinstance(made, str):
            skips.append(Skip(RULE, node.name, made))
        else:
            layers.append(Layer(node.name, weight.numel(), made, node.args[0] in evened))
    return layers, skips


def range_of(site: str, x: Tensor, weight: Tensor) -> Range | str:
    """The best range of a layer of this weight (O, I) on rows x (n, I) of its input, or why it is left alone.

    Raises `TechniqueError` for rows that are not finite.
    """
    if not bool(x.isfinite().all()):
        raise TechniqueError(
            f"calibration gave values that are not finite at the input of {site} "
            f"({int((~x.isfinite()).sum())} of {x.numel()}): give batches without NaN and infinities, or leave "
            f"it as it is, without=({site!r},)",
            technique=_TECHNIQUE,
            site=site,
        )
    if not bool(weight.isfinite().all()):
        return "its weights are not all finite"
    if not len(x):
        return "no row of the calibration reaches it"
    made = best_range(x, weight)
    if made is None:
        return "its input is zero throughout the calibration: there is no range to round in"
    if not made.error <= _WORST:
        return f"8 bits would put its output {made.error:.0%} off on the calibration"
    return made


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
        x, held, bias = node.args[0], node.args[1], _bias(node)
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
    right = _answers(gm, batches)
    found = {}
    for layer in layers:
        alone = copy_graph(gm)
        in_int8(alone, [layer])
        found[layer.site] = max(
            (moved(new, old) for new, old in zip(_answers(alone, batches), right, strict=True)), default=0.0
        )
    return found


def batches_of(program: Program) -> tuple[Sequence[Tensor], ...]:
    """The calibration batches of a captured program; its example where it has none."""
    return program.calibration or (program.batch,)


def _bias(node: fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


def _answers(gm: fx.GraphModule, batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The floating-point outputs, the elements of all batches one after the other."""
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        found = [[out.flatten() for out in gm(*batch) if out.is_floating_point()] for batch in batches]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def moved(new: Tensor, old: Tensor) -> float:
    """How far an answer moved, relative to its spread."""
    spread = float((old - old.mean()).norm()) or float(old.norm())
    off = float((new - old).norm())
    return off / spread if off else 0.0


def rows_kept(width: int) -> int:
    """How many rows of an input of this width are looked at."""
    return min(max(_ELEMENTS // max(width, 1), _ROWS[0]), _ROWS[1])


def evenly(rows: Tensor, most: int) -> Tensor:
    """At most so many of the rows, spread over them."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long()]


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
            self._kept[n].append(evenly(rows, -(-rows_kept(rows.shape[1]) // self._batches)).clone())
        return result
