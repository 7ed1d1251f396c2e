"""Linear maps and convolutions in 8-bit integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from ...ops.layers import Int8Linear
from ...program import Program
from ..base import Applied, Change, Skip
from ..traffic import batches_of
from .calibration import RULE, calibrate, sensitivities
from .integers import in_int8
from .layers import Layer, layers_of
from .linear_modules import calibrate_modules, linear_modules, module_sensitivities, modules_in_int8
from .sites import OnLayers

__all__ = ["QuantizeLinears"]


@dataclass(frozen=True)
class QuantizeLinears(OnLayers):
    """Compute linear maps and convolutions in 8-bit integers: weights by output channel, activations in one range for all batches.

        y = W x + b    ~    ((q(x) - zero) Q^T) * (scale_x scale_w) + b        see `fastrec.ops.int8_linear`

    Ranges are static: they come from calibration batches (the example batch where none are given, which is thin: rare
    large activations are then cut off), by the rule that gives the layer's output the least error on them. No row's
    answer depends on another row. Applies to maps (..., I) -> (..., O) by a constant float32 weight of at least
    `least` elements (O I): smaller ones take longer in integers, those at the limit gain from some 32 rows on. A
    convolution of one or two dimensions is such a map of windows, its weights counted at each position; its results are
    rounded too (`fastrec.ops.int8_convolution`). `only` names the sites to take (None: all) and `without` those to
    leave; a site is the name of the graph's node. A model that could not be captured has its plain `nn.Linear` modules
    taken, by the path of the module, where nobody but their own call reads the weight.

    Each change says the range and how far the rows of the layer's output are off on the calibration, each by its own
    size (`row_error`); a layer more than half off is left as it is. Raises `InputError` for settings of another kind and for a site in `only` that
    the model does not have, `TechniqueError` for a calibration that gives a layer NaN or infinities. Cost: a run of each calibration batch and some products per layer; weights take a quarter.

    Example:
        >>> QuantizeLinears().exact, QuantizeLinears(without=("linear_3",)).without
        (False, ('linear_3',))
    """

    name: ClassVar[str] = "quantize_linears"
    modules: ClassVar[bool] = True
    fitted: ClassVar[bool] = True
    kind: ClassVar[str] = "linear map or convolution"
    rule: ClassVar[str] = RULE
    numbers: ClassVar[str] = "int8"
    # Maps of so many weights gain at a single row; those of `least` from some 32 rows on.
    large: ClassVar[int] = 32768
    bytes_per_weight: ClassVar[int] = 1

    def candidates(self, gm: fx.GraphModule) -> list[fx.Node]:
        """Linear maps and convolutions."""
        return layers_of(gm)

    def apply(self, program: Program) -> Applied:
        """The program's model with these layers in integers; its own where there are none."""
        if isinstance(program.model, fx.GraphModule):
            return super().apply(program)
        found = linear_modules(program.model)
        sizes = {
            name: (module.in_features * module.out_features, "weights")
            for name, module in found.items()
            if not isinstance(module, Int8Linear)
        }
        chosen, skips = self.choose(sizes, [name for name in found if name not in sizes])
        layers, left = calibrate_modules(program, chosen) if chosen else ([], [])
        if not layers:
            return Applied(program.model, (), (*skips, *left))
        model, added = modules_in_int8(program, layers)
        return Applied(model, _changes(layers, added), (*skips, *left))

    def take(
        self, program: Program, gm: fx.GraphModule, nodes: list[fx.Node]
    ) -> tuple[tuple[Change, ...], list[Skip]]:
        """Puts these layers into integers, in the ranges that the calibration gives."""
        layers, skips = calibrate(gm, nodes, batches_of(program))
        return _changes(layers, in_int8(gm, layers)), skips

    def sensitivities(self, program: Program, sites: Collection[str] | None = None) -> dict[str, float]:
        """How far the answer moves with each layer alone in integers: see `calibration.sensitivities`."""
        captured = isinstance(program.model, fx.GraphModule)
        return sensitivities(program, sites) if captured else module_sensitivities(program, sites)


def _changes(layers: list[Layer], added: Mapping[str, int]) -> tuple[Change, ...]:
    return tuple(
        Change(
            RULE,
            layer.site,
            f"{layer.weights:,} weights, input by {layer.range.rule}{', channels made even' * layer.evened}, "
            f"output {layer.range.error:.1e} off",
            added[layer.site],
        )
        for layer in layers
    )
