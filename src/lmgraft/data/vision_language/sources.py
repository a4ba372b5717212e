"""Where images and texts come from: images below a folder by their names, and tables of one's own, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmgraft.data.files import as_names, file_sizes, listed, plural
from lmgraft.data.image.tables import FolderFiles, ImageTable
from lmgraft.data.vision_language.parts import Index
from lmgraft.data.vision_language.rows import read_rows, text_of
from lmgraft.errors import DataError


@dataclass(frozen=True)
class Source:
    """The texts of a source as they were given."""

    texts: Sequence[str]
    tables: Sequence[str] = ()
    """Of each text the table that it is from, where it is one to be predicted."""
    rows: Sequence[int] = ()
    """Of each text the number of its row, from 1."""


def image_table(where: str, root: Path, names: Sequence[str]) -> ImageTable:
    """Images below a folder by their names.

    Raises:
        DataError: If some are not there; it names the first few.
    """
    sizes = file_sizes(root, list(names))
    missing = [name for name, size in zip(names, sizes, strict=True) if size < 0]
    if missing:
        raise DataError(
            f"{where} names {plural(len(missing), 'image')} not in {root}: {listed(missing)}",
            "check data.root, or fetch the images",
        )
    packed = as_names(names)
    return ImageTable(
        where=str(root),
        names=packed,
        labels=np.zeros(len(names), np.int64),
        sizes=sizes,
        files=FolderFiles(str(root), packed),
    )


def loose(sources: Sequence[str], column: str, root: Path | None) -> tuple[ImageTable, Index, Source]:
    """Tables of one's own in the order of their rows: their images, the image of each text, and the texts.

    No image is looked for yet.

    Args:
        sources: Tables.
        column: Of the texts.
        root: What images are relative to; each table's own folder by default.

    Raises:
        DataError: If a table cannot be read, or a row has no image or no text.
    """
    files = [Path(source) for source in sources]
    tables = [read_rows(file, ("image", column)) for file in files]
    where = [root or file.parent for file, rows in zip(files, tables, strict=True) for _ in rows]
    rows = [row for rows in tables for row in rows]
    numbers: dict[str, int] = {}
    paths = (str(folder / text_of(*row, "image")) for folder, row in zip(where, rows, strict=True))
    image = np.array([numbers.setdefault(path, len(numbers)) for path in paths], np.int64)
    packed, unknown = as_names(list(numbers)), np.zeros(len(numbers), np.int64)
    table = ImageTable(where=".", names=packed, labels=unknown, sizes=unknown, files=FolderFiles("", packed))
    source = Source(
        texts=[text_of(*row, column) for row in rows],
        tables=[source for source, rows in zip(sources, tables, strict=True) for _ in rows],
        rows=[number for rows in tables for number in range(1, len(rows) + 1)],
    )
    return table, image, source
