"""Fewer columns: tables and linear maps in the directions that calibration uses."""

from __future__ import annotations

from .factored import FactorTables
from .pca import ProjectPCA
from .rotate import RotateTowers

__all__ = ["FactorTables", "ProjectPCA", "RotateTowers"]
