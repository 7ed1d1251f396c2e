"""A report in a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from ..report import Report
from .content import Cell, Table, facts, tables

__all__ = ["terminal"]

STYLES = {"good": "bold green", "bad": "bold red", "": ""}


def terminal(report: Report, console: Console | None = None) -> None:
    """Print a report, `console` deciding where to, how wide and in what colours (standard output if None).

    Names from the model are printed as they are, never read as markup or control sequences.
    """
    console = console or Console()
    style = "bold green" if any(size.verdict == "faster" for size in report.sizes) else "bold"
    console.print(Text(report.headline, style=style if report.status == "improved" else "bold"))
    for table in tables(report):
        console.print()
        console.print(Text(table.title, style="bold"))
        console.print(_grid(table))
        if table.more:
            console.print(Text(table.more, style="dim"))
    console.print()
    pairs = Grid(box=None, show_header=False, padding=(0, 2, 0, 0))
    pairs.add_column(no_wrap=True)
    pairs.add_column(overflow="fold")
    for word, said in facts(report):
        pairs.add_row(Text(word, style="bold"), Text(said))
    console.print(pairs)


def _grid(table: Table) -> Grid:
    grid = Grid(
        box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim"
    )
    for name in table.columns:
        grid.add_column(name, justify="right" if name in table.numbers else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*map(_text, row))
    return grid


def _text(cell: Cell) -> Text:
    text = Text(cell.text, style=STYLES[cell.tone])
    if cell.note:
        text.append(
            ("\n" if cell.text else "") + cell.note, style="not bold dim" if not cell.tone else "not bold"
        )
    return text
