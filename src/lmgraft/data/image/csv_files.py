"""A table of images: a CSV file with the columns path, label and, if wanted, split."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

from lmgraft.data.files import as_names, composed, file_sizes, listed, plural
from lmgraft.data.image.folders import Spell
from lmgraft.data.image.tables import FolderFiles, Found
from lmgraft.errors import DataError

ANY = ""
"""The split of images whose table has no column for it."""
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_REMEDY = "the first line names the columns: path,label or path,label,split"


def find_in_csv(file: Path, root: Path | None = None, spell: Spell = composed) -> dict[str, Found]:
    """Images of each split that the table names, or all of them under `ANY`.

    Args:
        file: The table, UTF-8, comma-separated, with a line of column names.
        root: What its paths are relative to; the table's own folder by default.
        spell: How names and labels are spelt before they are compared.

    Raises:
        DataError: If the table cannot be read, names a file twice, or names files that are not there.
    """
    rows = _rows(file)
    folder = file.parent if root is None else root
    splits: defaultdict[str, dict[str, str]] = defaultdict(dict)
    seen: dict[str, int] = {}
    for line, row in rows:
        name, split = Path(row["path"].strip()).as_posix(), _split(row.get("split"), file, line)
        if name in seen:
            raise DataError(f"{file} names {name} in line {seen[name]} and again in line {line}", "keep one of them")
        seen[name] = line
        splits[split][name] = spell(row["label"].strip())
    found = {split: _found(file, folder, split, labels, spell) for split, labels in splits.items()}
    missing = [name for part in found.values() for name, size in zip(part.names, part.sizes, strict=True) if size < 0]
    if missing:
        raise DataError(
            f"{file} names {plural(len(missing), 'file')} not in {folder}: {listed(missing)}",
            "paths are relative to data.root, or to the table's own folder where that is not given",
        )
    return found


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = set(reader.fieldnames or ())
            if not {"path", "label"} <= columns:
                raise DataError(f"{file} has the columns {', '.join(sorted(columns)) or '(none)'}", _REMEDY)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise DataError(f"data.csv={file} cannot be read: {error.strerror}", "check the path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is no comma-separated table in UTF-8: {error}", _REMEDY) from None
    for line, row in rows:
        if not (row["path"] or "").strip() or not (row["label"] or "").strip() or None in row:
            raise DataError(f"{file}, line {line}: a path and a label are needed, and no more columns than in line 1")
    if not rows:
        raise DataError(f"{file} names no image", _REMEDY)
    return rows


def _split(value: str | None, file: Path, line: int) -> str:
    if value is None:
        return ANY
    try:
        return SPLITS[value.strip().lower()]
    except KeyError:
        raise DataError(f"{file}, line {line}: there is no split {value!r}", "a split is train, val or test") from None


def _found(file: Path, folder: Path, split: str, labels: dict[str, str], spell: Spell) -> Found:
    names = list(labels)
    return Found(
        where=f"{file} ({split})" if split else str(file),
        names=[spell(name) for name in names],
        labels=list(labels.values()),
        sizes=file_sizes(folder, names),
        files=FolderFiles(str(folder), as_names(names)),
    )
