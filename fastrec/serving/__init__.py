"""Serving a known catalogue: what the candidates alone decide is computed once for all of them."""

from __future__ import annotations

from .scorer import LIMIT_BYTES, Scorer, precompute

__all__ = ["LIMIT_BYTES", "Scorer", "precompute"]
