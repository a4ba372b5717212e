"""Tables: values in columns that say how they are written, and the text, Markdown, LaTeX and CSV made of them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lmgraft.words.numbers import MINUS, NONE


@dataclass(frozen=True)
class Table:
    """Text in rows; every row as long as the header."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Column:
    """A column of a sheet."""

    title: str
    """The column's head in text; "" for one that stands in the CSV file alone."""
    value: Callable[[Any], Any]
    """From a record; None or a number that is not finite where there is none."""
    write: Callable[[Any], str] = str
    """A value as text; a dash stands for none."""
    names: tuple[str, ...] = ()
    """The column's name in the CSV file, several for the parts of a value; () for one that stands in text alone."""


@dataclass(frozen=True)
class Sheet:
    """Records in columns."""

    columns: Sequence[Column]
    records: Sequence[Any]

    def table(self) -> Table:
        """Values as text."""
        shown = [column for column in self.columns if column.title]
        rows = [tuple(_text(c.value(record), c.write) for c in shown) for record in self.records]
        return Table(tuple(column.title for column in shown), rows)

    def csv(self) -> str:
        """Numbers with all their digits; nothing for what is None or not finite."""
        kept = [column for column in self.columns if column.names]
        rows = ([part for c in kept for part in _parts(c.value(record), c.names)] for record in self.records)
        return csv_text([name for column in kept for name in column.names], rows)


def _text(value: Any, write: Callable[[Any], str]) -> str:
    return NONE if _absent(value) else write(value)


def _parts(value: Any, names: tuple[str, ...]) -> Iterable[Any]:
    if len(names) == 1:
        return [value]
    return [None] * len(names) if value is None else value


def csv_text(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Lines of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if _absent(cell) else cell for cell in row] for row in rows])
    return text.getvalue()


def _absent(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and not math.isfinite(cell))


def markdown(table: Table) -> str:
    """The table in Markdown, its text escaped."""
    head, *body = (map(_markdown_text, row) for row in (table.header, *table.rows))
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, rule, *body))


def latex(table: Table) -> str:
    r"""The table as a `tabular` with booktabs' rules, its text escaped; the page needs \usepackage{booktabs}."""
    columns = "l" + "r" * (len(table.header) - 1)
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        _latex_row(table.header),
        "\\midrule",
        *map(_latex_row, table.rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join([*lines, ""])


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\0": "{}",
    NONE: "--",
    MINUS: "$-$",
    "[": "{[}",  # at a row's beginning it would be read as the option of the \\ before
    "]": "{]}",
    "*": "{*}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def latex_text(text: str) -> str:
    """`text` so that LaTeX prints it as it is; minus signs before numbers as such."""
    minus = re.sub(r"(?<![\w-])-(?=\d)", MINUS, _one_line(text))
    apart = re.sub(r"-(?=-)", "-\0", minus)  # two would be joined to a dash
    return "".join(_LATEX.get(character, character) for character in apart)


def _markdown_text(text: str) -> str:
    # Within a word an underscore marks nothing.
    return re.sub(r"([\\`*{}\[\]<>|#~$&]|(?<!\w)_|_(?!\w))", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
