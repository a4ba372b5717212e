"""The questions of a split as plain data, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmgraft.data.vision_language.parts import Part
from lmgraft.data.vision_language.rows import Row, images_and_texts, kinds_of, rows_by_split, texts_of

KINDS = ("answer_type", "question_type")
"""Columns that divide questions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions(Part):
    """The questions of one split, as their files have them."""

    answers: Sequence[tuple[str, ...]]
    """(N,) what one or more people answered; nothing where that is kept back."""

    def more(self) -> tuple[Sequence[object], ...]:
        return (self.answers,)


def find_questions(file: Path, root: Path | None) -> dict[str, Questions]:
    """The questions of each split that a table names, or all under `rows.ANY`.

    Its columns: image (a path), question, answer (one text; in JSON also the list of several people's), and if wanted
    split, answer_type, question_type.

    Args:
        root: What images are relative to; the table's own folder by default.

    Raises:
        DataError: If the table cannot be read, or a row lacks something.
    """
    splits = rows_by_split(file, ("image", "question", "answer"))
    return {split: _questions(file, root or file.parent, split, rows) for split, rows in splits.items()}


def _questions(file: Path, root: Path, split: str, rows: Sequence[Row]) -> Questions:
    return Questions(
        **images_and_texts(file, root, split, rows, "question"),
        answers=[texts_of(where, row, "answer") for where, row in rows],
        kinds=kinds_of(rows, KINDS),
    )
