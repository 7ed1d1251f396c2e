"""Numbers, never opinions: latency, accuracy, memory, and the machine they were taken on."""

from __future__ import annotations

from .accuracy import Fidelity, fidelity
from .breakdown import Breakdown, Part, breakdown
from .evaluate import Evaluator, evaluator
from .gate import Gate, compare
from .latency import Latency, Ratio, Samples, interleaved
from .loss import Loss
from .machine import Machine, machine
from .memory import resident_bytes, tensor_bytes
from .metrics import METRICS, Metric
from .segments import SegmentLoss, newcomers, popularity

__all__ = [
    "METRICS",
    "Breakdown",
    "Evaluator",
    "Fidelity",
    "Gate",
    "Latency",
    "Loss",
    "Machine",
    "Metric",
    "Part",
    "Ratio",
    "Samples",
    "SegmentLoss",
    "breakdown",
    "compare",
    "evaluator",
    "fidelity",
    "interleaved",
    "machine",
    "newcomers",
    "popularity",
    "resident_bytes",
    "tensor_bytes",
]
