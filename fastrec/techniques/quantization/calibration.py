"""What 8 bits would do to each layer, seen on calibration batches; graphs are looked at here, modules in `linear_modules`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import TechniqueError
from ...graph import constant
from ...program import Program
from ..base import Skip
from ..traffic import batches_of
from .integers import in_int8
from .layers import Layer, groups_of, is_convolution, layers_of, limits, named, shift_of, sole_clamp, unfit
from .ranges import best_output, best_range
from .sensitivity import moved_by
from .smoothing import smooth
from .windows import geometry_of, windows

__all__ = ["RULE", "calibrate", "evenly", "inputs_of", "judge", "rows_kept", "sensitivities"]

Take = Callable[[Tensor, int], Tensor]
"""Rows of a value, given how many batches there are."""

Results = tuple[Tensor, tuple[float, float]]
"""What comes of a convolution's products before they are rounded: a bias (O,), and the ends of a clamp."""

RULE = "quantize linears"
"""What skips and changes of these techniques are called."""

_TECHNIQUE = "quantize_linears"
# Rows kept of each input: as many as its width leaves room for.
_ROWS = (64, 2048)
_ELEMENTS = 2**20
# An answer further off than this is no answer; sensitivities are a matter of the budget below it.
_WORST = 0.5


def calibrate(
    gm: fx.GraphModule, nodes: Sequence[fx.Node], batches: Iterable[Sequence[Tensor]]
) -> tuple[list[Layer], list[Skip]]:
    """The best range of each of these layers on the batches, and those left alone with their reasons.

    Channels of inputs of linear maps are made even in `gm` where that helps (see `smoothing`), which changes none of its
    answers. At most 2,048 rows of each input are looked at, windows of a convolution, spread over the batches. Raises
    `TechniqueError` for values that are not finite. Cost: a run of the graph for each batch, and some products of each
    layer with these rows.
    """
    reasons = {node: unfit(gm, node) for node in nodes}
    fit = [node for node in nodes if not reasons[node]]
    moved = [node for node in fit if is_convolution(node)]
    sources: list[Any] = list(dict.fromkeys(node.args[0] for node in fit if node not in moved))
    takes: list[tuple[Any, Take]] = [(source, _rows) for source in sources]
    takes += [(node.args[0], _windows_of(node, constant(gm, node.args[1]))) for node in moved]
    taken = _watch(gm, takes, list(batches))
    seen: dict[Any, Tensor] = dict(zip(sources, taken, strict=False))
    windowed = dict(zip(moved, taken[len(sources) :], strict=True))
    evened = smooth(gm, seen)
    layers: list[Layer] = []
    skips: list[Skip] = []
    for node in nodes:
        weight = constant(gm, node.args[1])
        assert weight is not None
        found: Layer | str = reasons[node]
        if not found:
            x = windowed[node] if node in windowed else seen[node.args[0]]
            found = judge(node.name, x, weight.flatten(1), groups_of(node), _results(gm, node))
        if isinstance(found, Layer):
            layers.append(replace(found, evened=node.args[0] in evened))
        else:
            skips.append(Skip(RULE, node.name, found))
    return layers, skips


def judge(
    site: str, x: Tensor, weight: Tensor, groups: int = 1, results: Results | None = None
) -> Layer | str:
    """The layer of this weight (O, I) with its best range on rows x (n, I) of its input, or why it is left alone.

    With groups, weight (O, I / groups); `results` of those whose results are rounded too. Raises `TechniqueError` for
    rows that are not finite.
    """
    if not bool(x.isfinite().all()):
        raise TechniqueError(
            f"calibration gave values that are not finite at the input of {site} "
            f"({int((~x.isfinite()).sum())} of {x.numel()}): give batches without NaN and infinities, or leave "
            f"it as it is, without=({site!r},)",
            technique=_TECHNIQUE,
            site=site,
        )
    if not len(x):
        return "no row of the calibration reaches it"
    made, output = best_range(x, weight, groups), None
    if made is None:
        return "its input is zero throughout the calibration: there is no range to round in"
    if results is not None:
        output = best_output(x, weight, groups, results[0], made, results[1])
        if output is None:
            return "its output is zero throughout the calibration: there is no range to round in"
        made = replace(made, error=output.error)
    if math.isnan(made.error):
        return "a row of the calibration is too large for it: its output overflows float32"
    if not made.error <= _WORST:
        return f"8 bits would put its output {made.error:.0%} off on the calibration"
    return Layer(site, weight.numel(), made, output=output)


def _results(gm: fx.GraphModule, node: fx.Node) -> Results | None:
    return (
        (shift_of(gm, node), limits(sole_clamp(node)) or (-math.inf, math.inf))
        if is_convolution(node)
        else None
    )


def rows_kept(width: int, parts: int = 1) -> int:
    """How many rows of an input of this width are looked at, of each of so many parts."""
    return -(-min(max(_ELEMENTS // max(width, 1), _ROWS[0]), _ROWS[1]) // parts)


def evenly(rows: Tensor, most: int) -> Tensor:
    """A copy of at most so many of the rows, spread over them."""
    if len(rows) <= most:
        return rows.clone()
    # float32 does not hold the numbers of more than 2^24 rows.
    return rows[torch.linspace(0, len(rows) - 1, most, dtype=torch.float64).long()]


def sensitivities(program: Program, sites: Collection[str] | None = None) -> dict[str, float]:
    """How far the answer of a captured program moves when one layer alone is in 8 bits, for each that can be.

        |y' - y| / |y - mean of y|

    over the calibration batches, the largest of the outputs; `sites` names the layers to look at. The first to leave
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
    nodes = [node for node in layers_of(gm) if sites is None or node.name in sites]
    layers, _ = calibrate(gm, nodes, batches)
    return moved_by(gm, batches, {layer.site: partial(in_int8, layers=[layer]) for layer in layers})


def inputs_of(
    gm: fx.GraphModule, sources: Iterable[fx.Node], batches: Sequence[Sequence[Tensor]]
) -> dict[fx.Node, Tensor]:
    """Rows (n, I) of the values of these nodes, as many of each batch."""
    wanted = list(dict.fromkeys(sources))
    return dict(zip(wanted, _watch(gm, [(source, _rows) for source in wanted], batches), strict=True))


def _watch(
    gm: fx.GraphModule, takes: Sequence[tuple[fx.Node, Take]], batches: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """What each take keeps of the value of its node, over all batches."""
    watching = _Watching(gm, takes, len(batches))
    with torch.no_grad(), torch.random.fork_rng(devices=()):
        for batch in batches:
            watching.run(*batch)
    return [torch.cat(rows) for rows in watching.kept]


def _rows(found: Tensor, batches: int) -> Tensor:
    return evenly(found.reshape(-1, found.shape[-1]), rows_kept(found.shape[-1], batches))


def _windows_of(node: fx.Node, weight: Tensor | None) -> Take:
    assert weight is not None
    kernel = weight.shape[2:]
    moves = geometry_of(node, kernel)
    width = weight[0].numel() * moves.groups
    return lambda found, batches: windows(found, kernel, moves, rows_kept(width, batches))


class _Watching(fx.Interpreter):
    """Runs a graph and keeps rows of some values."""

    def __init__(self, gm: fx.GraphModule, takes: Sequence[tuple[fx.Node, Take]], batches: int) -> None:
        super().__init__(gm)
        self.kept: list[list[Tensor]] = [[] for _ in takes]
        self._batches = batches
        self._takes: dict[fx.Node, list[tuple[Take, list[Tensor]]]] = {}
        for (node, take), rows in zip(takes, self.kept, strict=True):
            self._takes.setdefault(node, []).append((take, rows))

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        for take, rows in self._takes.get(n, ()):
            rows.append(take(result, self._batches))
        return result
