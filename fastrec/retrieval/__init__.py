"""The k best items of a matrix for a query, by inner products: exactly, in less than the product of both takes."""

from __future__ import annotations

from .report import TopKReport, WayTimed
from .topk import TopK

__all__ = ["TopK", "TopKReport", "WayTimed"]
