"""Fewer columns: tables and linear maps in the directions that calibration uses."""

from __future__ import annotations

from .pca import ProjectPCA

__all__ = ["ProjectPCA"]
