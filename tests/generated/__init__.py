"""Recommenders that nobody wrote: random mixtures of fields and blocks, described by plain data."""

from __future__ import annotations

from .describe import Description, descriptions
from .model import entry_of, request_of

__all__ = ["Description", "descriptions", "entry_of", "request_of"]
