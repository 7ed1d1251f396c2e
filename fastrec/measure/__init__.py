"""Numbers, never opinions: latency, accuracy, memory, and the machine they were taken on."""

from __future__ import annotations

from .accuracy import Fidelity, fidelity
from .latency import Latency, Ratio, Samples, interleaved
from .machine import Machine, machine
from .memory import resident_bytes, tensor_bytes

__all__ = [
    "Fidelity",
    "Latency",
    "Machine",
    "Ratio",
    "Samples",
    "fidelity",
    "interleaved",
    "machine",
    "resident_bytes",
    "tensor_bytes",
]
