"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain text: brackets in it are no markup; all columns but the first stand to the right."""
    table = Table()
    for position, name in enumerate(header):
        table.add_column(Text(name), justify="right" if position else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
