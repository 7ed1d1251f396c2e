"""Linear maps in 8-bit integers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from torch import fx

from ...errors import InputError
from ...graph import is_call, value
from ...ops.layers import Int8Linear
from ...ops.linears import INT8_LINEAR
from ...program import Program
from ..base import Applied, Change, Skip, Technique
from ..fusion.purity import writes
from .calibration import RULE, Layer, batches_of, calibrate, in_int8, linear_maps, named, sensitivities
from .linear_modules import calibrate_modules, linear_modules, module_sensitivities, modules_in_int8

__all__ = ["QuantizeLinears"]

# Maps of so many weights gain at a single row; those of `least` from some 32 rows on.
_LARGE = 32768
# Of the layers, those left as they are where the budget is broken.
_PARTS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class QuantizeLinears(Technique):
    """Compute linear maps in 8-bit integers: weights by output channel, activations in one range for all batches.

        y = W x + b    ~    ((q(x) - zero) Q^T) * (scale_x scale_w) + b        see `fastrec.ops.int8_linear`

    Ranges are static: they come from calibration batches (the example batch where none are given, which is thin: rare
    large activations are then cut off), by the rule that gives the layer's output the least error on them. No row's
    answer depends on another row. Applies to maps (..., I) -> (..., O) by a constant float32 weight of at least
    `least` elements (O I): smaller ones take longer in integers, those at the limit gain from some 32 rows on. `only` names the sites to take (None: all) and
    `without` those to leave; a site is the name of the graph's node. A model that could not be captured has its plain
    `nn.Linear` modules taken, by the path of the module, where nobody but their own call reads the weight.

    Each change says the range and how far the layer's output is off on the calibration, `|y' - y| / |y|`; a layer
    more than half off is left as it is. Raises `InputError` for settings of another kind and for a site in `only` that
    the model does not have, `TechniqueError` for a calibration that gives a layer NaN or infinities. Cost: a run of each calibration batch and some products per layer; weights take a quarter.

    Example:
        >>> QuantizeLinears().exact, QuantizeLinears(without=("linear_3",)).without
        (False, ('linear_3',))
    """

    name: ClassVar[str] = "quantize_linears"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    modules: ClassVar[bool] = True

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
        """The program's model with these maps in integers; its own where there are none."""
        if not isinstance(program.model, fx.GraphModule):
            return self._to_modules(program)
        if writes(program.model):
            return Applied(
                program.model, skipped=(Skip(RULE, "", "the graph writes in place: values seen may change"),)
            )
        gm = named(program.model)
        found = {node.name: node for node in linear_maps(gm)}
        weights = {name: value(node.args[1]).numel() for name, node in found.items()}  # type: ignore[arg-type]  # an argument of a node is of any type
        done = [node.name for node in gm.graph.nodes if is_call(node, INT8_LINEAR)]
        chosen, skips = self._chosen(weights, done)
        layers, left = (
            calibrate(gm, [found[name] for name in chosen], batches_of(program)) if chosen else ([], [])
        )
        skips += left
        if not layers:
            return Applied(program.model, skipped=tuple(skips))
        added = in_int8(gm, layers)
        return Applied(gm, tuple(_change(layer, added) for layer in layers), tuple(skips))

    def _to_modules(self, program: Program) -> Applied:
        found = linear_modules(program.model)
        weights = {
            name: m.in_features * m.out_features for name, m in found.items() if not isinstance(m, Int8Linear)
        }
        chosen, skips = self._chosen(weights, [name for name in found if name not in weights])
        layers, left = calibrate_modules(program, chosen) if chosen else ([], [])
        skips += left
        if not layers:
            return Applied(program.model, skipped=tuple(skips))
        model, added = modules_in_int8(program, layers)
        return Applied(model, tuple(_change(layer, added) for layer in layers), tuple(skips))

    def alternatives(self, changes: tuple[Change, ...]) -> dict[str, Technique]:
        """The large layers alone: what integers gain grows with a layer and with the rows, what they cost does not."""
        sizes = [change.added_bytes for change in changes if change.rule == RULE]
        if self.least >= _LARGE or not any(size < _LARGE for size in sizes) or max(sizes) < _LARGE:
            return {}
        return {f"int8 from {_LARGE:,} weights": replace(self, least=_LARGE)}

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:
        """Without a quarter, half and three quarters of its layers, those that move the model's answer most."""
        sites = {change.site for change in changes if change.rule == RULE}
        captured = isinstance(program.model, fx.GraphModule)
        moved = sensitivities(program, sites) if captured else module_sensitivities(program, sites)
        order = sorted(moved, key=lambda site: -moved[site])
        counts = sorted({math.ceil(len(order) * part) for part in _PARTS} - {len(order)})
        return tuple(replace(self, without=(*self.without, *order[:count])) for count in counts)

    @classmethod
    def ladder(cls) -> tuple[Self, ...]:
        """The layers worth it, and every layer."""
        return (cls(), cls(least=0))

    def _chosen(self, weights: Mapping[str, int], done: Sequence[str]) -> tuple[list[str], list[Skip]]:
        """The sites to take, of those with so many weights each, and those left, beside the sites that are `done`.

        Raises `InputError` for a name in `only` of no linear map.
        """
        known = [*weights, *done]
        for name in self.only or ():
            if name not in known:
                raise InputError(
                    f"QuantizeLinears(only=...) has {name!r:.80}, which is no linear map of this model: "
                    f"it has {', '.join(known) or 'none'}"
                )
        skips = [
            Skip(RULE, name, "to be left as it is, but no linear map of this model")
            for name in self.without
            if name not in known
        ]
        chosen = []
        for name, count in weights.items():
            if (self.only is not None and name not in self.only) or name in self.without:
                continue
            if count < self.least:
                skips.append(Skip(RULE, name, f"{count:,} weights: under {self.least:,}"))
            else:
                chosen.append(name)
        return chosen, skips


def _change(layer: Layer, added: Mapping[str, int]) -> Change:
    return Change(
        RULE,
        layer.site,
        f"{layer.weights:,} weights, input by {layer.range.rule}{', channels made even' * layer.evened}, "
        f"output {layer.range.error:.1e} off",
        added[layer.site],
    )
