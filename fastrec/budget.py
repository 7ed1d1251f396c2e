"""The budget: what an approximate recipe may lose, what must be reached, and which of it is to be least."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .errors import InputError

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """What may be lost at most, and what must be reached: `Budget(max_loss={"auc": 0.0002})`.

    `max_loss` gives, per metric, an absolute difference. Approximate changes serve only where their loss is certified to be within:
    the one-sided 95 % bound of the paired loss is, not merely its value. Without any, a loss is reported and refuses nothing.

    `segments` gives the same for the rows of every segment alone, the worst one included; `evaluate` says which there are
    (`fastrec.measure.evaluator(..., segments=...)`). A segment with too few rows to certify refuses like any other.

    `bytes` is for the tables as they serve, maps and codebooks included; `Report.met` says whether they fit. What is small
    enough then serves whether or not it is faster, and the original is let go.

    `p95_ms` is what the 95th percentile of a call may take in milliseconds, at each of the `batch_sizes`; `Report.met` says whether it does.
    `minimize` says what the search makes least of what is within: the time of a call, or the bytes of the model's tensors; with
    "bytes" what is smallest serves, faster or not.

    Raises `InputError` for a budget that asks for nothing, at a loss that is negative or not finite, at `bytes` that are no
    whole number above 0, at a `p95_ms` that is not above 0, and at another `minimize`.

    Example:
        >>> Budget(max_loss={"auc": 0.0005}, segments={"auc": 0.002}, bytes=100 << 20).bytes
        104857600
    """

    max_loss: Mapping[str, float] = field(default_factory=dict)
    bytes: int | None = None
    segments: Mapping[str, float] = field(default_factory=dict)
    p95_ms: float | None = None
    minimize: Literal["latency", "bytes"] = "latency"

    def __post_init__(self) -> None:
        maps = isinstance(self.max_loss, Mapping) and isinstance(self.segments, Mapping)
        asked = self.max_loss or self.segments or self.bytes is not None or self.p95_ms is not None
        if maps and not asked and self.minimize == "bytes":
            raise InputError(
                "Budget(minimize='bytes') says what is to be least and not what may be lost for it: give max_loss as well, "
                "as Budget(max_loss={'auc': 0.0002}, minimize='bytes')"
            )
        if not maps or not asked:
            raise InputError(
                f"Budget takes max_loss, from metrics to what may be lost, as {{'auc': 0.0002}}, segments, the same of each segment, bytes, what tables may take, or p95_ms, what a call may take; got max_loss={self.max_loss!r:.80}, segments={self.segments!r:.80}"
            )
        for name in ("max_loss", "segments"):
            for metric, allowed in getattr(self, name).items():
                number = isinstance(allowed, (int, float)) and not isinstance(allowed, bool)
                if not number or not math.isfinite(allowed) or allowed < 0:
                    raise InputError(
                        f"Budget.{name}[{metric!r}] is {allowed!r:.80}, expected a finite number, 0 or above: an absolute loss"
                    )
        if self.bytes is not None and (type(self.bytes) is not int or self.bytes <= 0):
            raise InputError(
                f"Budget.bytes is {self.bytes!r:.80}, expected a whole number above 0: what the tables may take"
            )
        if self.p95_ms is not None:
            number = isinstance(self.p95_ms, (int, float)) and not isinstance(self.p95_ms, bool)
            if not number or not 0 < self.p95_ms < math.inf:
                raise InputError(
                    f"Budget.p95_ms is {self.p95_ms!r:.80}, expected a finite number above 0: milliseconds of a call"
                )
        if self.minimize not in ("latency", "bytes"):
            raise InputError(f"Budget.minimize is {self.minimize!r:.80}, expected 'latency' or 'bytes'")

    @property
    def bounded(self) -> bool:
        """Whether it says what may be lost, so that what approximates may be looked for."""
        return bool(self.max_loss or self.segments)
