"""What approximating moved, learned back from the original."""

from __future__ import annotations

from .recover import Recover

__all__ = ["Recover"]
