"""A report as Markdown."""

from __future__ import annotations

import re

from ..report import Report
from .content import Cell, Table, facts, tables

__all__ = ["markdown"]

# What starts Markdown, HTML, mathematics or a link inside a line.
SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$#@]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
# GitHub looks for @name and #12 in the finished page, where a backslash is gone: a word joiner keeps them apart.
REFERENCE = re.compile(r"([#@])(?=\w)")
TONES = {"good": "**", "bad": "**", "": ""}


def markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown, to paste into a pull request or a README.

    Names from the model are escaped: they show as they are and never become markup, links or mentions.
    """
    parts = [f"## {escape(report.headline)}"]
    for table in tables(report):
        parts.append(f"### {escape(table.title)}")
        parts.append(_table(table))
        if table.more:
            parts.append(escape(table.more))
    parts.append("\n".join(f"- **{escape(word)}**: {escape(said)}" for word, said in facts(report)))
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    r"""Text that Markdown shows as it is.

    Example:
        >>> print(escape("<b>|user_id*"))
        \<b\>\|user\_id\*
    """
    return SPECIAL.sub(r"\\\1", REFERENCE.sub("\\1\u2060", text))


def _table(table: Table) -> str:
    rule = ["---:" if name in table.numbers else "---" for name in table.columns]
    lines = [
        [escape(name) for name in table.columns],
        rule,
        *([_cell(cell) for cell in row] for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    mark = TONES[cell.tone]
    text = f"{mark}{escape(cell.text)}{mark}" if cell.text else ""
    if not cell.note:
        return text
    return f"{text} ({escape(cell.note)})" if text else escape(cell.note)
