"""The questions of a split as plain data, and tables of them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmgraft.data.vision_language.rows import Row, read_rows, split_of, text_of, texts_of
from lmgraft.errors import DataError

KINDS = ("answer_type", "question_type")
"""Columns that divide questions."""
ANY = ""
"""The split of rows that name none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Questions:
    """The questions of one split, as their files have them."""

    where: str
    """What an error calls them."""
    root: Path
    """Folder of the images."""
    names: Sequence[str]
    """(I,) images, relative to root."""
    image: Sequence[int]
    """(N,) the image of each question."""
    texts: Sequence[str]
    """(N,)"""
    answers: Sequence[tuple[str, ...]]
    """(N,) what one or more people answered; nothing where that is kept back."""
    kinds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Category (answer_type, question_type) -> (N,) the part that each question is of."""

    def digest(self) -> str:
        """SHA-256 of all texts, answers and kinds, and of which image they are about."""
        digest = hashlib.sha256()
        for row in zip(self.image, self.texts, self.answers, *self.kinds.values(), strict=True):
            digest.update(repr((self.names[row[0]], *row[1:])).encode())
        return digest.hexdigest()


def find_questions(file: Path, root: Path | None, need_answers: bool = True) -> dict[str, Questions]:
    """The questions of each split that a table names, or all under `ANY`.

    Its columns: image (a path), question, answer (one text; in JSON also the list of several people's), and if wanted
    split, answer_type, question_type.

    Args:
        root: What images are relative to; the table's own folder by default.

    Raises:
        DataError: If the table cannot be read, or a row lacks something.
    """
    needed = ("image", "question", "answer") if need_answers else ("image", "question")
    splits: defaultdict[str, list[Row]] = defaultdict(list)
    for where, row in read_rows(file, needed):
        splits[split_of(where, row) or ANY].append((where, row))
    if ANY in splits and len(splits) > 1:
        raise DataError(f"{splits[ANY][0][0]} names no split, and other rows do", "name one in every row, or in none")
    return {split: _questions(file, root or file.parent, split, rows) for split, rows in splits.items()}


def _questions(file: Path, root: Path, split: str, rows: Sequence[Row]) -> Questions:
    numbers: dict[str, int] = {}
    image = [numbers.setdefault(text_of(where, row, "image"), len(numbers)) for where, row in rows]
    kinds = {name: [_kind(where, row, name) for where, row in rows] for name in KINDS if rows[0][1].get(name)}
    return Questions(
        where=f"{file} ({split})" if split else str(file),
        root=root,
        names=list(numbers),
        image=image,
        texts=[text_of(where, row, "question") for where, row in rows],
        answers=[texts_of(where, row, "answer") for where, row in rows],
        kinds=kinds,
    )


def _kind(where: str, row: dict[str, object], name: str) -> str:
    if not row.get(name):
        raise DataError(f"{where} has no {name}, and other rows do", "name it in every row, or in none")
    return text_of(where, row, name)
