"""What users ask of a compressed model in their own tests: `check_compressed(model, fast, batches)`."""

from __future__ import annotations

from .check import check_compressed

__all__ = ["check_compressed"]
