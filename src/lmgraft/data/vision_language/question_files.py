"""Questions about images in one's own tables: CSV, TSV, JSON or JSON Lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmgraft.data.vision_language.question_table import ANY, Questions, find_questions
from lmgraft.data.vision_language.questions import QuestionData
from lmgraft.errors import DataError


class QuestionFiles(QuestionData):
    """Questions in tables, with the columns image, question, answer, and if wanted answer_type and question_type.

    Args:
        train: The table of the training questions; or of all, with a column split (train, val, test).
        val: That of the questions that choose the epoch; without one, a share of the training images is held out.
        test: That of the test questions.
        root: Folder that images are relative to; by default that of their table.
        options: See `QuestionData`.
    """

    name = "question_files"

    def __init__(
        self, train: str, val: str | None = None, test: str | None = None, root: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.tables = {"train": train, "val": val, "test": test}
        self.root = root

    def find(self) -> dict[str, Questions]:
        root = None if self.root is None else Path(self.root).expanduser()
        found: dict[str, Questions] = {}
        for split, file in self.tables.items():
            if file is None:
                continue
            parts = find_questions(Path(file).expanduser(), root)
            parts = {split if name == ANY else name: part for name, part in parts.items()}
            twice = sorted(set(parts) & set(found))
            if twice:
                raise DataError(
                    f"{file} has questions of {' and '.join(twice)}, as another table has", "keep one of them"
                )
            found |= parts
        for split in ("train", "test"):
            if split not in found:
                raise DataError(
                    f"there are no questions for {split}: {', '.join(file for file in self.tables.values() if file)}",
                    f"give data.{split}, or a column split",
                )
        return found
