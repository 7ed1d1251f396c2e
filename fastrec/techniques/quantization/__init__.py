"""Fewer bits for tables and products: not exact, and so checked against a budget."""

from __future__ import annotations

from .tables import QuantizeTables

__all__ = ["QuantizeTables"]
