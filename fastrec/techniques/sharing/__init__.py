"""Sharing: what tables have in common, or nearly so, is kept once."""

from __future__ import annotations

from .embeddings import ShareEmbeddings
from .related import RelateTables

__all__ = ["RelateTables", "ShareEmbeddings"]
