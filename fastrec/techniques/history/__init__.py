"""Long histories of a user, made shorter where every candidate looks at all of them."""

from __future__ import annotations

from .truncate import TruncateHistory

__all__ = ["TruncateHistory"]
