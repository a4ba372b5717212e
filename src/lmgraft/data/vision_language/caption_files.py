"""Images with captions in one's own tables: CSV, TSV, JSON or JSON Lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmgraft.data.files import check_prepared, prepared_place
from lmgraft.data.vision_language.caption_table import Captions, find_captions
from lmgraft.data.vision_language.captions import CaptionData
from lmgraft.data.vision_language.rows import splits_of_tables


class CaptionFiles(CaptionData):
    """Captions in tables, with the columns image, caption, and if wanted concept, category and wording.

    Captions fit all images of one concept; without that column each image is its own.

    Args:
        train: The table of the training captions; or of all, with a column split (train, val, test).
        val: That of the captions that choose the epoch; without one, a share of the training images is held out.
        test: That of the test captions.
        root: Folder that images are relative to; by default that of their table.
        options: See `CaptionData`.
    """

    name = "caption_files"

    def __init__(
        self, train: str, val: str | None = None, test: str | None = None, root: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.tables = {"train": train, "val": val, "test": test}
        self.root = root

    @property
    def own_root(self) -> Path | None:
        return None if self.root is None else Path(self.root).expanduser()

    def find(self) -> dict[str, Captions]:
        return splits_of_tables(self.tables, lambda file: find_captions(file, self.own_root), self.things)


class PreparedCaptions(CaptionFiles):
    """Captions that `lmgraft prepare` made, with a table for each split.

    Args:
        root: The set's folder; None is lmgraft's cache.
        test: The table of the test captions.
        options: See `CaptionData`.
    """

    def __init__(self, root: str | None, *, test: str = "test", **options: Any) -> None:
        self.tree = prepared_place(self.name) if root is None else Path(root).expanduser()
        train, val, test = (str(self.tree / f"{table}.jsonl") for table in ("train", "val", test))
        super().__init__(train=train, val=val, test=test, root=None, **options)

    def find(self) -> dict[str, Captions]:
        check_prepared(self.tree, self.name)
        return super().find()
