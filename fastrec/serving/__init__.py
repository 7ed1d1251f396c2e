"""Serving forms: a known catalogue, what the candidates alone decide computed once for all of them; several requests in one call."""

from __future__ import annotations

from .merged import Merged
from .scorer import LIMIT_BYTES, Scorer, precompute

__all__ = ["LIMIT_BYTES", "Merged", "Scorer", "precompute"]
