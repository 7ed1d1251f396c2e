"""Fewer units, heads, blocks, fields and rows."""

from __future__ import annotations

from .dead import PruneDead
from .fields import PruneFields
from .neurons import PruneNeurons
from .rows import PruneRows

__all__ = ["PruneDead", "PruneFields", "PruneNeurons", "PruneRows"]
