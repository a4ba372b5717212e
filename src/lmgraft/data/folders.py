"""Folders of class folders, found as timm's reader finds them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from timm.data.readers.reader_image_folder import find_images_and_targets
from timm.utils.misc import natural_key

from lmgraft.data.tables import FolderFiles, Found, as_names
from lmgraft.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_STATS = 2000  # files whose sizes are asked for in one task


def find_in_folder(root: Path) -> Found:
    """Images below `root`; the folder an image lies in is its class.

    timm's reader, with more file types, and with ties of its order settled (1.jpg, 01.jpg), which
    would otherwise be the file system's.

    Raises:
        DataError: If the folder cannot be read or holds no image in a class folder.
    """
    try:
        below = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}", "check data.root") from None
    found, numbers = find_images_and_targets(str(root), types=EXTENSIONS, sort=False)
    classes = {number: name for name, number in numbers.items()}
    start = len(os.path.join(root, ""))
    rows = sorted(
        ((path[start:].replace(os.sep, "/"), classes[number]) for path, number in found),
        key=lambda row: (natural_key(row[0]), row[0]),
    )
    loose = [name for name, _ in rows if "/" not in name]
    if loose:
        raise DataError(
            f"{root} holds images outside of any class folder: {listed(loose)}",
            "put each image into a folder named after its class, or give a table of labels as data.csv",
        )
    if not rows:
        raise DataError(
            f"{root} holds no images ({', '.join(EXTENSIONS)}) in class folders",
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
    )


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
