"""Questions about images in one's own tables: CSV, TSV, JSON or JSON Lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmgraft.data.vision_language.question_table import Questions, find_questions
from lmgraft.data.vision_language.questions import QuestionData
from lmgraft.data.vision_language.rows import splits_of_tables


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

    @property
    def own_root(self) -> Path | None:
        return None if self.root is None else Path(self.root).expanduser()

    def find(self) -> dict[str, Questions]:
        return splits_of_tables(self.tables, lambda file: find_questions(file, self.own_root), self.things)
