"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import table as rich
from rich.console import Console
from rich.text import Text

from lmgraft.report.table import Table


def text_table(table: Table) -> rich.Table:
    """A table of plain text: brackets in it are no markup; all columns but the first stand to the right."""
    shown = rich.Table()
    for position, name in enumerate(table.header):
        shown.add_column(Text(name), justify="right" if position else "left")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown


def print_table(table: Table, sentences: Iterable[str] = (), *, width: int | None) -> None:
    """Print a table, and sentences under it.

    Args:
        width: Columns to print in; None for those of the terminal.
    """
    console = Console(width=width)
    console.print(text_table(table))
    for sentence in sentences:
        console.print(f"- {sentence}", highlight=False, markup=False)
