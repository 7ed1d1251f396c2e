"""Linear maps and convolutions in 8-bit integers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from torch import fx

from ...errors import InputError, TechniqueError
from ...graph import is_call
from ...ops.convolutions import INT8_CONVOLUTION
from ...ops.linears import INT8_LINEAR
from ...program import Program
from ..base import Applied, Change, Skip, Technique
from ..fusion.purity import writes
from .calibration import batches_of, calibrate, sensitivities
from .integers import in_int8
from .layers import is_convolution, layers_of, named, uses

__all__ = ["QuantizeLinears"]

_RULE = "quantize linears"
# Maps of so many weights gain at a single row; those of `least` from some 32 rows on.
_LARGE = 32768
# Of the layers, those left as they are where the budget is broken.
_PARTS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class QuantizeLinears(Technique):
    """Compute linear maps and convolutions in 8-bit integers: weights by output channel, activations in one range for all batches.

        y = W x + b    ~    ((q(x) - zero) Q^T) * (scale_x scale_w) + b        see `fastrec.ops.int8_linear`

    Ranges are static: they come from calibration batches (the example batch where none are given, which is thin: rare
    large activations are then cut off), by the rule that gives the layer's output the least error on them. No row's
    answer depends on another row. Applies to maps (..., I) -> (..., O) by a constant float32 weight of at least
    `least` elements (O I): smaller ones take longer in integers, those at the limit gain from some 32 rows on. A
    convolution of one or two dimensions is such a map of windows, its weights counted at each position; its results are
    rounded too (`fastrec.ops.int8_convolution`). `only` names the sites to take (None: all) and `without` those to
    leave; a site is the name of the graph's node.

    Each change says the range and how far the layer's output is off on the calibration, `|y' - y| / |y|`; a layer
    more than half off is left as it is. Raises `InputError` for settings of another kind and for a site in `only` that
    the graph does not have, `TechniqueError` for a model that was not captured and for a calibration that gives a layer
    NaN or infinities. Cost: a run of each calibration batch and some products per layer; weights take a quarter.

    Example:
        >>> QuantizeLinears().exact, QuantizeLinears(without=("linear_3",)).without
        (False, ('linear_3',))
    """

    name: ClassVar[str] = "quantize_linears"
    level: ClassVar[Literal["module", "graph"]] = "graph"

    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    least: int = 4096

    def __post_init__(self) -> None:
        for setting, names in (("only", self.only), ("without", self.without)):
            if names is not None and not (
                isinstance(names, tuple) and all(isinstance(name, str) and name for name in names)
            ):
                raise InputError(f"QuantizeLinears({setting}=...) takes a tuple of names, got {names!r:.80}")
        if isinstance(self.least, bool) or not isinstance(self.least, int) or self.least < 0:
            raise InputError(
                f"QuantizeLinears(least=...) takes a whole number from 0, got {self.least!r:.80}"
            )

    @property
    def exact(self) -> bool:
        """Never."""
        return False

    def apply(self, program: Program) -> Applied:
        """The graph with these maps in integers; the program's own where there are none."""
        if not isinstance(program.model, fx.GraphModule):
            raise TechniqueError("rewrites captured graphs: capture the program first", technique=self.name)
        if writes(program.model):
            return Applied(
                program.model, skipped=(Skip(_RULE, "", "the graph writes in place: values seen may change"),)
            )
        gm = named(program.model)
        found = layers_of(gm)
        skips = self._unknown(gm, found)
        chosen = []
        for node in found:
            weights, kind = uses(node), "multiply-adds a row" if is_convolution(node) else "weights"
            if (self.only is not None and node.name not in self.only) or node.name in self.without:
                continue
            if weights < self.least:
                skips.append(Skip(_RULE, node.name, f"{weights:,} {kind}: under {self.least:,}"))
            else:
                chosen.append(node)
        layers, left = calibrate(gm, chosen, batches_of(program)) if chosen else ([], [])
        skips += left
        if not layers:
            return Applied(program.model, skipped=tuple(skips))
        added = in_int8(gm, layers)
        changes = [
            Change(
                _RULE,
                layer.site,
                f"{layer.weights:,} weights, input by {layer.range.rule}{', channels made even' * layer.evened}, "
                f"output {layer.range.error:.1e} off",
                added[layer.site],
            )
            for layer in layers
        ]
        return Applied(gm, tuple(changes), tuple(skips))

    def alternatives(self, changes: tuple[Change, ...]) -> dict[str, Technique]:
        """The large layers alone: what integers gain grows with a layer and with the rows, what they cost does not."""
        sizes = [change.added_bytes for change in changes if change.rule == _RULE]
        if self.least >= _LARGE or not any(size < _LARGE for size in sizes) or max(sizes) < _LARGE:
            return {}
        return {f"int8 from {_LARGE:,} weights": replace(self, least=_LARGE)}

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:
        """Without a quarter, half and three quarters of its layers, those that move the model's answer most."""
        moved = sensitivities(program, {change.site for change in changes if change.rule == _RULE})
        order = sorted(moved, key=lambda site: -moved[site])
        counts = sorted({math.ceil(len(order) * part) for part in _PARTS} - {len(order)})
        return tuple(replace(self, without=(*self.without, *order[:count])) for count in counts)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """The layers worth it, and every layer."""
        return (cls(), cls(least=0))

    def _unknown(self, gm: fx.GraphModule, found: list[fx.Node]) -> list[Skip]:
        """A skip for each name in `without` of no layer. Raises `InputError` for one in `only`."""
        done = [node for node in gm.graph.nodes if is_call(node, INT8_LINEAR, INT8_CONVOLUTION)]
        sites = [node.name for node in (*found, *done)]
        for name in self.only or ():
            if name not in sites:
                raise InputError(
                    f"QuantizeLinears(only=...) has {name!r:.80}, which is no linear map or convolution of this graph: "
                    f"it has {', '.join(sites) or 'none'}"
                )
        return [
            Skip(_RULE, name, "to be left as it is, but no linear map or convolution of this graph")
            for name in self.without
            if name not in sites
        ]
