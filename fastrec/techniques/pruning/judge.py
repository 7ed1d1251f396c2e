"""How far answers are off where something was cut, on some of the calibration."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from ..quantization.sensitivity import answers, furthest

__all__ = ["WORST", "Judge"]

WORST = 0.5
"""An answer further off than this is no answer."""
# Batches that are run for each choice: which of two cuts is better takes fewer rows than how good one is.
_BATCHES = 8


class Judge:
    """Compares graphs with one by their answers, |y' - y| / |y - mean of y|, on at most eight batches spread over these."""

    def __init__(self, gm: fx.GraphModule, batches: Sequence[Sequence[Tensor]]) -> None:
        count = min(len(batches), _BATCHES)
        self._batches = [batches[k * len(batches) // count] for k in range(count)]
        self._right = answers(gm, self._batches)

    def off(self, gm: fx.GraphModule) -> float:
        """How far the answers of a graph are off, the largest of the outputs; infinite where they are not finite. Cost: a run of each batch."""
        return furthest(answers(gm, self._batches), self._right)
