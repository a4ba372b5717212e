"""Where clips lie: tables of paths and labels, or folders of class folders; each clip a video or a folder of frames."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timm.utils.misc import natural_key

from lmgraft.data.files import (
    as_names,
    composed,
    counted,
    extension,
    file_sizes,
    is_system_folder,
    leads_back,
    listed,
    plural,
)
from lmgraft.data.image.opening import is_image
from lmgraft.data.image.tables import FolderFiles, Found
from lmgraft.data.video.decoding import VIDEO_EXTENSIONS, is_video
from lmgraft.errors import DataError

SEPARATORS = {",": "a comma", "\t": "a tab", " ": "a space"}
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_TABLES = (".csv", ".txt", ".tsv")
_COLUMNS = ("path", "label", "split")
_LINE = "a line is a path and a label, separated by a comma, a tab or a space"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the clips lie: `VideoFiles`' options of the same names."""

    root: str | None = None
    """Folder with train, val and test as tables (train.csv) or as folders of class folders, or one such folder."""
    csv: str | None = None
    """One table of all clips, with a path and a label a line; a first line `path,label,split` names columns."""
    videos: str | None = None
    """What paths in tables are relative to; root by default, or the table's own folder."""
    train_split: str | None = None
    """Name of the training split: a table or a folder in root; train by default."""
    val_split: str | None = None
    """The same of the split that chooses the epoch; val, valid or validation by default."""
    test_split: str | None = None
    """The same of the test split; test by default."""


def find_clips(places: Places) -> dict[str, Found]:
    """The splits that there are: "train", and "val" and "test" as far as there are such.

    Raises:
        DataError: If a table or folder is missing, cannot be read, or names videos that are not there.
    """
    if places.csv is not None:
        table = Path(places.csv).expanduser()
        found = find_in_table(table, Path(places.videos or places.root or table.parent).expanduser())
        if "train" not in found:
            raise DataError(f"{places.csv} has no clips for training", "name them train in its column split")
        return found
    if places.root is None:
        raise DataError("data.root is missing", "give the folder of the videos: --data.root DIR")
    root = Path(places.root).expanduser()
    if not root.is_dir():
        raise DataError(f"data.root={places.root}: there is no such folder", "check the path")
    named = {"train": places.train_split, "val": places.val_split, "test": places.test_split}
    parts = {split: _part(root, named[split], usual) for split, usual in _SPLITS.items()}
    there = {split: part for split, part in parts.items() if part is not None}
    if not there:
        return {"train": find_in_folder(root)}
    if "train" not in there:
        raise DataError(
            f"{root} has {' and '.join(part.name for part in there.values())} but no train folder or table",
            "name the training split as data.train_split",
        )
    videos = root if places.videos is None else Path(places.videos).expanduser()
    return {
        split: find_in_table(part, videos)["train"] if part.is_file() else find_in_folder(part)
        for split, part in there.items()
    }


def _part(root: Path, named: str | None, usual: Sequence[str]) -> Path | None:
    for name in usual if named is None else (named,):
        for path in (root / name, *(root / f"{name}{ending}" for ending in _TABLES)):
            if path.is_dir() or (path.is_file() and path.suffix.lower() in _TABLES):
                return path
    if named is not None:
        raise DataError(f"{root} has neither a folder nor a table {named}", "check the names of the splits")
    return None


def find_in_table(file: Path, videos: Path) -> dict[str, Found]:
    """Clips of each split that a table names; all are "train" where it has no column for it.

    Which separator it has is seen from its lines and noted. Paths may hold the other ones; those in the first column of
    a space-separated table may hold spaces, its label may not.

    Args:
        videos: What its paths are relative to.

    Raises:
        DataError: If it cannot be read, has no separator, names a clip twice, or names clips that are not there.
    """
    lines = _lines(file)
    separator = _separator(file, lines)
    first = [word.strip().lower() for word in lines[0][1].split(separator)]
    columns = first if {"path", "label"} <= set(first) <= set(_COLUMNS) else None
    rows: dict[str, dict[str, str]] = {}
    seen: dict[str, int] = {}
    for number, line in lines[1:] if columns else lines:
        row = _row(file, number, line, separator, columns)
        name = Path(row["path"]).as_posix()
        if name in seen:
            raise DataError(f"{file} names {name} in line {seen[name]} and again in line {number}", "keep one of them")
        seen[name] = number
        split = row.get("split", "train").lower()
        if split not in _SPLITS:
            raise DataError(f"{file}, line {number}: there is no split {split!r}", "a split is train, val or test")
        rows.setdefault(split, {})[name] = composed(row["label"])
    note = f"{file}: separated by {SEPARATORS[separator]}" + ("" if columns else ", without a line of column names")
    return {split: _found(file, videos, labels, (note,)) for split, labels in rows.items()}


def _lines(file: Path) -> list[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", "check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no table in UTF-8: {error}", _LINE) from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"{file} names no clip", _LINE)
    return lines


def _separator(file: Path, lines: Sequence[tuple[int, str]]) -> str:
    """The first of tab, comma and space that every line has."""
    for separator in ("\t", ",", " "):
        if all(separator in line for _, line in lines):
            return separator
    counts = {separator: sum(separator in line for _, line in lines) for separator in SEPARATORS}
    best = max(counts, key=lambda separator: counts[separator])
    number, line = next((number, line) for number, line in lines if best not in line)
    raise DataError(
        f"{file}, line {number}: no label can be told from the path in {line[:80]!r}"
        + (f"; {counts[best]:,} of {len(lines):,} lines have {SEPARATORS[best]}" if counts[best] else ""),
        _LINE + ("; this one has semicolons" if ";" in line else ""),
    )


def _row(file: Path, number: int, line: str, separator: str, columns: Sequence[str] | None) -> dict[str, str]:
    if columns:
        words = [word.strip().strip('"') for word in line.split(separator)]
        if len(words) != len(columns) or not all(words):
            raise DataError(f"{file}, line {number}: {len(words)} values for the columns {', '.join(columns)}", _LINE)
        return dict(zip(columns, words, strict=True))
    path, _, label = line.rpartition(separator)
    if not path.strip() or not label.strip():
        raise DataError(f"{file}, line {number}: a path and a label are needed in {line[:80]!r}", _LINE)
    return {"path": path.strip().strip('"'), "label": label.strip().strip('"')}


def _found(file: Path, videos: Path, labels: dict[str, str], notes: tuple[str, ...]) -> Found:
    names = list(labels)
    sizes = file_sizes(videos, names)
    missing = [name for name, size in zip(names, sizes, strict=True) if size < 0]
    if missing:
        raise DataError(
            f"{file} names {plural(len(missing), 'clip')} not in {videos}: {listed(missing)}",
            "paths are relative to data.videos, or to data.root where that is not given",
        )
    folders = np.array([os.path.isdir(videos / name) for name in names])
    return Found(
        where=str(file),
        names=[composed(name) for name in names],
        labels=list(labels.values()),
        sizes=np.where(folders, -1, sizes),  # bytes of a folder say nothing
        files=FolderFiles(str(videos), as_names(names)),
        notes=notes,
    )


def find_in_folder(root: Path) -> Found:
    """Clips in class folders directly below `root`: videos, or folders that hold images.

    Raises:
        DataError: If there is none.
    """
    rows: list[str] = []
    ignored: Counter[str] = Counter()
    classes = [entry for entry in os.scandir(root) if entry.is_dir() and not is_system_folder(entry.name)]
    for entry in classes:
        for name in _clips_in(entry.path, ignored):
            rows.append(f"{entry.name}/{name}")
    rows.sort(key=lambda name: (natural_key(name), name))
    if not rows:
        other = f", but {counted(dict(ignored))}" if ignored else ""
        raise DataError(
            f"{root} holds no videos ({', '.join(VIDEO_EXTENSIONS)}) and no folders of frames in class folders{other}",
            "data.root is a folder of class folders, of train and val with class folders in them, or of train.csv and "
            "val.csv",
        )
    labels = [composed(name.split("/", 1)[0]) for name in rows]
    sizes = file_sizes(root, rows)
    return Found(
        where=str(root),
        names=[composed(name) for name in rows],
        labels=labels,
        sizes=np.where([is_video(name) for name in rows], sizes, -1),
        files=FolderFiles(str(root), as_names(rows)),
        folders=True,
        empty=tuple(sorted({composed(entry.name) for entry in classes} - set(labels))),
        ignored=dict(ignored),
    )


def _clips_in(folder: str, ignored: Counter[str], inner: str = "") -> Iterator[str]:
    """Names below a class folder, relative to it: videos, and the innermost folders that hold images."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    if inner and any(is_image(entry.name) and entry.is_file() for entry in entries):
        yield inner.rstrip("/")
        return
    for entry in entries:
        if entry.is_dir():
            if not is_system_folder(entry.name) and not leads_back(folder, entry.name):
                yield from _clips_in(entry.path, ignored, f"{inner}{entry.name}/")
        elif is_video(entry.name):
            yield f"{inner}{entry.name}"
        elif not entry.name.startswith("."):
            ignored[extension(entry.name)] += 1


def clips_below(folder: Path) -> list[Path] | None:
    """Videos and folders of frames below a folder, in order; None where its own files are frames."""
    if any(is_image(name) for name in os.listdir(folder)):
        return None
    return [folder / name for name in _clips_in(str(folder), Counter())]
