"""The budget: what an approximate recipe may lose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import InputError

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """What may be lost at most, per metric, as an absolute difference: `Budget(max_loss={"auc": 0.0002})`.

    Approximate changes serve only where their loss is certified to be within: the one-sided 95 % bound of the paired loss is,
    not merely its value.

    Raises `InputError` at an empty mapping, and at a loss that is negative or not finite.
    """

    max_loss: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.max_loss, Mapping) or not self.max_loss:
            raise InputError(
                f"Budget.max_loss maps metrics to what may be lost, as {{'auc': 0.0002}}, got {self.max_loss!r:.80}"
            )
        for metric, allowed in self.max_loss.items():
            number = isinstance(allowed, (int, float)) and not isinstance(allowed, bool)
            if not number or not math.isfinite(allowed) or allowed < 0:
                raise InputError(
                    f"Budget.max_loss[{metric!r}] is {allowed!r:.80}, expected a finite number, 0 or above: an absolute loss"
                )
