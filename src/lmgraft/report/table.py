"""Tables as rows of text, and how Markdown and LaTeX write them; what is in them is the other rooms' matter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lmgraft.analysis.numbers import MINUS, NONE


@dataclass(frozen=True)
class Table:
    """Text in rows; every row as long as the header."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


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
