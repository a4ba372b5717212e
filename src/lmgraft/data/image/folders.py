"""Folders of class folders, found as timm's reader finds them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from timm.utils.misc import natural_key

from lmgraft.data.image.opening import EXTENSIONS, is_image
from lmgraft.data.image.tables import FolderFiles, Found, as_names
from lmgraft.errors import DataError

_STATS = 2000  # files whose sizes are asked for in one task


def find_in_folder(root: Path) -> Found:
    """Images below `root`; the folder an image lies in is its class.

    As timm's reader, with more file types, and with ties of its order settled (1.jpg, 01.jpg), which
    would otherwise be the file system's. Files of other types are counted.

    Raises:
        DataError: If the folder cannot be read or holds no image in a class folder.
    """
    try:
        below = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}", "check data.root") from None
    rows: list[tuple[str, str]] = []
    ignored: Counter[str] = Counter()
    for folder, _, files in os.walk(root, followlinks=True):
        inner = "" if folder == str(root) else os.path.relpath(folder, root).replace(os.sep, "/")
        for name in files:
            if is_image(name):
                rows.append((f"{inner}/{name}" if inner else name, os.path.basename(inner)))
            elif inner and not name.startswith("."):
                ignored[extension(name)] += 1
    rows.sort(key=lambda row: (natural_key(row[0]), row[0]))
    loose = [name for name, _ in rows if "/" not in name]
    if loose:
        raise DataError(
            f"{root} holds images outside of any class folder: {listed(loose)}",
            "put each image into a folder named after its class, or give a table of labels as data.csv",
        )
    if not rows:
        raise DataError(
            f"{root} holds no images ({', '.join(EXTENSIONS)}) in class folders{_but(ignored)}",
            "data.root is a folder of class folders, or of train and val folders with class folders in them",
        )
    filled = {name.split("/", 1)[0] for name, _ in rows}
    names = [name for name, _ in rows]
    return Found(
        where=str(root),
        names=names,
        labels=[label for _, label in rows],
        sizes=file_sizes(root, names),
        files=FolderFiles(str(root), as_names(names)),
        folders=True,
        empty=tuple(name for name in below if name not in filled),
        ignored=most_first(ignored),
    )


def _but(ignored: Counter[str]) -> str:
    return f", but files of other types: {counted(most_first(ignored))}" if ignored else ""


def extension(name: str) -> str:
    """In small letters, with its dot; "" if there is none."""
    return os.path.splitext(name)[1].lower()


def most_first(ignored: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(ignored.items(), key=lambda item: (-item[1], item[0])))


def counted(ignored: Mapping[str, int]) -> str:
    """Extensions with how many files have them."""
    return listed([f"{ending or 'no extension'} {count:,}" for ending, count in ignored.items()])


def file_sizes(root: Path, names: list[str]) -> npt.NDArray[np.int64]:
    """Bytes of each file; -1 where there is none. Asked for in threads: a network's answers take their time."""

    def ask(start: int) -> list[int]:
        return [_size(os.path.join(root, name)) for name in names[start : start + _STATS]]

    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(ask, range(0, len(names), _STATS)))
    return np.array([size for part in parts for size in part], np.int64)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def listed(names: list[str], most: int = 5) -> str:
    """The first few names and how many there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
