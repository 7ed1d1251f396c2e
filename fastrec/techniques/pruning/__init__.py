"""Fewer units, heads, blocks, fields and rows."""

from __future__ import annotations

from .blocks import DropBlocks
from .dead import PruneDead
from .fields import PruneFields
from .heads import PruneHeads
from .neurons import PruneNeurons
from .rows import PruneRows

__all__ = ["DropBlocks", "PruneDead", "PruneFields", "PruneHeads", "PruneNeurons", "PruneRows"]
