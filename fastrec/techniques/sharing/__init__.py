"""Sharing: what tables, rows and parts of rows have in common, or nearly so, is kept once."""

from __future__ import annotations

from .compositional import ComposeTables
from .embeddings import ShareEmbeddings
from .products import ProductQuantizeTables
from .related import RelateTables

__all__ = ["ComposeTables", "ProductQuantizeTables", "RelateTables", "ShareEmbeddings"]
