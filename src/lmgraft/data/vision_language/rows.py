"""Rows of tables with named columns: CSV, TSV, JSON and JSON Lines, of images and texts."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lmgraft.data.image.csv_files import SPLITS
from lmgraft.errors import DataError

ENDINGS = (".csv", ".tsv", ".json", ".jsonl")
_FORMS = "a table is CSV or TSV with a line of column names, a JSON list of objects, or JSON Lines"
_NO_TEXT = "no text under {}"

Row = tuple[str, dict[str, Any]]
"""Where a row lies, for errors, and its values by column."""
ANY = ""
"""The split of rows that name none."""
Part = TypeVar("Part")


def read_rows(file: Path, needed: Sequence[str]) -> list[Row]:
    """All rows of a table.

    Args:
        needed: Columns that every row must have, not blank.

    Raises:
        DataError: If the table cannot be read, or rows lack a column; it names the first line and counts them.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = list(_parsed(file, text))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", "check the path") from None
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise DataError(f"{file} is no table in UTF-8: {error}", _FORMS) from None
    if not rows:
        raise DataError(f"{file} has no rows", _FORMS)
    problems = [f"{where} {problem}" for where, row in rows if (problem := _problem(row, needed))]
    refuse(problems, len(rows), f"its columns are {', '.join(map(str, rows[0][1])) or 'none'}; {_FORMS}")
    return rows


def refuse(problems: Sequence[str], total: int, remedy: str) -> None:
    """Refuse rows of a file.

    Args:
        problems: What each of the wrong rows lacks, with the place of the row.
        total: Number of all rows.
        remedy: What to do.

    Raises:
        DataError: If there are any; it names the first and counts them.
    """
    if problems:
        more = f"; {len(problems):,} of {total:,} rows lack something" if len(problems) > 1 else ""
        raise DataError(problems[0] + more, remedy)


def _problem(row: dict[str, Any], needed: Sequence[str]) -> str:
    """What is wrong with the columns that a row must have."""
    missing = [name for name in needed if _is_empty(row.get(name))]
    if missing:
        return f"has no {' and no '.join(missing)}"
    return next((f"has {_NO_TEXT.format(name)}" for name in needed if not all(map(_is_text, _listed(row[name])))), "")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_empty(value: object) -> bool:
    """Whether a value says nothing: blank, no number, or a list with nothing in it or such a value."""
    if isinstance(value, list):
        return not value or any(map(_is_empty, value))
    return value is None or (isinstance(value, str) and not value.strip()) or _is_no_number(value)


def _is_no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and not _is_no_number(value)


def _parsed(file: Path, text: str) -> Iterator[Row]:
    ending = file.suffix.lower()
    if ending == ".jsonl":
        # Not splitlines, which also ends a line at characters that texts may hold, such as U+2028.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _object(f"{file}, line {number}", json.loads(line))
    elif ending == ".json":
        whole = json.loads(text)
        if not isinstance(whole, list):
            raise DataError(f"{file} holds no list", _FORMS)
        for number, row in enumerate(whole, 1):
            yield _object(f"{file}, object {number}", row)
    elif ending in (".csv", ".tsv"):
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if ending == ".tsv" else ",")
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row:
                raise DataError(f"{where} has more columns than line 1", "put texts with commas between quotes")
            yield where, row
    else:
        raise DataError(f"{file}: tables end in {', '.join(ENDINGS)}", _FORMS)


def _object(where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where} is no object", _FORMS)
    return where, row


def text_of(where: str, row: dict[str, Any], column: str) -> str:
    """A column's text, without space around it; finite numbers are written out.

    Raises:
        DataError: If it is no text.
    """
    value = row[column]
    if not _is_text(value):
        raise DataError(f"{where} has {_NO_TEXT.format(column)}", _FORMS)
    return str(value).strip()


def images_and_texts(file: Path, root: Path, split: str, rows: Sequence[Row], column: str) -> dict[str, Any]:
    """Fields of a `Part`: where it lies, its images, numbered by first coming, and the texts of a column."""
    numbers: dict[str, int] = {}
    image = [numbers.setdefault(text_of(where, row, "image"), len(numbers)) for where, row in rows]
    return {
        "where": f"{file} ({split})" if split else str(file),
        "root": root,
        "names": list(numbers),
        "image": image,
        "texts": [text_of(where, row, column) for where, row in rows],
    }


def texts_of(where: str, row: dict[str, Any], column: str) -> tuple[str, ...]:
    """A column's text, or several of a list."""
    return tuple(text_of(where, {column: one}, column) for one in _listed(row[column]))


def split_of(where: str, row: dict[str, Any]) -> str | None:
    """The split that a row names; None where it names none.

    Raises:
        DataError: If there is no such split.
    """
    value = row.get("split")
    if _is_empty(value):
        return None
    try:
        return SPLITS[str(value).strip().lower()]
    except KeyError:
        raise DataError(f"{where}: there is no split {value!r}", "a split is train, val or test") from None


def rows_by_split(file: Path, needed: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of each split that a table names, or all under `ANY`.

    Raises:
        DataError: See `read_rows`; or if some rows name a split, and others none.
    """
    splits: defaultdict[str, list[Row]] = defaultdict(list)
    for where, row in read_rows(file, needed):
        splits[split_of(where, row) or ANY].append((where, row))
    if ANY in splits and len(splits) > 1:
        raise DataError(f"{splits[ANY][0][0]} names no split, and other rows do", "name one in every row, or in none")
    return dict(splits)


def kinds_of(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[str]]:
    """Of each of these columns that a table has: the part of each row.

    Raises:
        DataError: If some rows name a part, and others none.
    """
    there = [name for name in names if any(not _is_empty(row.get(name)) for _, row in rows)]
    return {name: [_kind(where, row, name) for where, row in rows] for name in there}


def _kind(where: str, row: dict[str, Any], name: str) -> str:
    if _is_empty(row.get(name)):
        raise DataError(f"{where} has no {name}, and other rows do", "name it in every row, or in none")
    return text_of(where, row, name)


def splits_of_tables(
    tables: Mapping[str, str | None], read: Callable[[Path], Mapping[str, Part]], things: str
) -> dict[str, Part]:
    """What tables hold of each split; train and test are among them.

    Args:
        tables: Split -> the table of its rows, or of those of all splits, if they name them.
        read: Gives what a table has of each split, or under `ANY`.
        things: What rows are, in the plural.

    Raises:
        DataError: If a split comes twice, or is lacking.
    """
    found: dict[str, Part] = {}
    for split, file in tables.items():
        if file is None:
            continue
        parts = {name or split: part for name, part in read(Path(file).expanduser()).items()}
        twice = sorted(set(parts) & set(found))
        if twice:
            raise DataError(f"{file} has {things} of {' and '.join(twice)}, as another table has", "keep one of them")
        found |= parts
    for split in ("train", "test"):
        if split not in found:
            raise DataError(
                f"there are no {things} for {split}: {', '.join(file for file in tables.values() if file)}",
                f"give data.{split}, or a column split",
            )
    return found
