"""The recipe for a budget, where none is given: what to try next (`order`), trying it (`trials`), by whom (`spread`), and a file of outcomes (`resume`)."""

from __future__ import annotations

from .find import Searched, find_recipe, is_asked
from .spread import Worker, Workers
from .task import Task

__all__ = ["Searched", "Task", "Worker", "Workers", "find_recipe", "is_asked"]
