"""HTML that pages share: the document, tables, lists of files, what is to be opened. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from lmgraft.report.table import Table

_CSS = resources.files("lmgraft.report").joinpath("page.css").read_text(encoding="utf-8")


def document(
    title: str, heading: str, lead: str, sections: Iterable[str], *, colors: str = "", dark: bool = False
) -> str:
    """A self-contained page, no script, nothing fetched.

    Args:
        title: Of the window.
        lead: Text under the heading.
        sections: HTML; empty ones are left out.
        colors: CSS of figures whose colours follow the reader's theme.
        dark: Whether all of the page can be shown dark.
    """
    return f"""<!doctype html>
<html lang="en"{' class="both"' if dark else ""}>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_CSS}{colors}</style>
</head>
<body><main>
<h1>{escape(heading)}</h1>
<p class="lead">{escape(lead)}</p>
{"".join(section for section in sections if section)}
</main></body>
</html>
"""


def sentences(said: Iterable[str]) -> str:
    """What is to be read first, as a list."""
    return f'<div class="card words"><ul>{"".join(f"<li>{escape(one)}</li>" for one in said)}</ul></div>'


def listed_files(title: str, files: Sequence[str]) -> str:
    """Links to files beside the page; nothing without any."""
    links = "".join(f'<li><a href="{escape(file)}">{escape(file)}</a></li>' for file in files)
    return f'<h2>{escape(title)}</h2><div class="card"><ul class="files">{links}</ul></div>' if links else ""


def plain_table(table: Table, style: str = "") -> str:
    """A table as it is."""
    rows = "".join(map(row, table.rows))
    return f'<table class="{style}">{head(table.header)}<tbody>{rows}</tbody></table>'


def head(names: Sequence[str]) -> str:
    """Of a table."""
    cells = "".join(f'<th scope="col">{escape(name).replace(" = ", "&nbsp;=&nbsp;")}</th>' for name in names)
    return f"<thead><tr>{cells}</tr></thead>"


def row(cells: Sequence[str], before: str = "", second: str = "") -> str:
    """Of a table; `before` is HTML before the first cell's text, `second` a whole cell behind it."""
    long = " long" if len(cells[0]) > 32 else ""
    first = f'<td class="name{long}">{before}{escape(cells[0])}</td>'
    return f"<tr>{first}{second}{''.join(f'<td>{escape(cell)}</td>' for cell in cells[1:])}</tr>"


def details(title: str, inside: str) -> str:
    """Something to be opened."""
    return f'<details class="card"><summary>{escape(title)}</summary>{inside}</details>'
