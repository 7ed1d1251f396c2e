"""Quantization: tables and linear maps in fewer bits, with static scales or none, so that no row depends on another."""

from __future__ import annotations

from .calibration import sensitivities
from .casts import CastLinears
from .linears import QuantizeLinears
from .tables import QuantizeTables

__all__ = ["CastLinears", "QuantizeLinears", "QuantizeTables", "sensitivities"]
