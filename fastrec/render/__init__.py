"""Reports for people: in a terminal, as Markdown, as a page of HTML, and as CSV."""

from __future__ import annotations

from .csv import csv
from .html import html, write_html
from .markdown import markdown
from .terminal import terminal

__all__ = ["csv", "html", "markdown", "terminal", "write_html"]
