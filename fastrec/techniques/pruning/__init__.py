"""Fewer units, heads, blocks, fields and rows."""

from __future__ import annotations

from .neurons import PruneNeurons

__all__ = ["PruneNeurons"]
