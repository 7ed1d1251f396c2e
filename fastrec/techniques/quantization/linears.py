"""Linear maps and convolutions in 8-bit integers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from ...program import Program
from ..base import Change, Skip
from .calibration import batches_of, calibrate, sensitivities
from .integers import in_int8
from .layers import layers_of
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
    fitted: ClassVar[bool] = True
    kind: ClassVar[str] = "linear map or convolution"
    rule: ClassVar[str] = "quantize linears"
    numbers: ClassVar[str] = "int8"
    # Maps of so many weights gain at a single row; those of `least` from some 32 rows on.
    large: ClassVar[int] = 32768
    bytes_per_weight: ClassVar[int] = 1

    def candidates(self, gm: fx.GraphModule) -> list[fx.Node]:
        """Linear maps and convolutions."""
        return layers_of(gm)

    def take(
        self, program: Program, gm: fx.GraphModule, nodes: list[fx.Node]
    ) -> tuple[list[Change], list[Skip]]:
        """Puts these layers into integers, in the ranges that the calibration gives."""
        layers, skips = calibrate(gm, nodes, batches_of(program))
        added = in_int8(gm, layers)
        changes = [
            Change(
                self.rule,
                layer.site,
                f"{layer.weights:,} weights, input by {layer.range.rule}{', channels made even' * layer.evened}, "
                f"output {layer.range.error:.1e} off",
                added[layer.site],
            )
            for layer in layers
        ]
        return changes, skips

    def sensitivities(self, program: Program, sites: Collection[str] | None = None) -> dict[str, float]:
        """How far the answer moves with each layer alone in integers: see `calibration.sensitivities`."""
        return sensitivities(program, sites)
