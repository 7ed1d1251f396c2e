"""The recipe for a budget, where none is given: what to try next (`order`), trying it (`trials`), and a file of outcomes (`resume`)."""

from __future__ import annotations

from .find import Found, find_recipe, is_asked

__all__ = ["Found", "find_recipe", "is_asked"]
