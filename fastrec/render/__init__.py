"""Reports for people: in a terminal, and as Markdown."""

from __future__ import annotations

from .markdown import markdown
from .terminal import terminal

__all__ = ["markdown", "terminal"]
