"""Folders of class folders, found as timm's reader finds them."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from timm.utils.misc import natural_key

from lmgraft.data.image.opening import EXTENSIONS, is_image
from lmgraft.data.image.tables import FolderFiles, Found, as_names
from lmgraft.errors import DataError

_STATS = 2000  # files whose sizes are asked for in one task


SYSTEM_FOLDERS = frozenset((
    "@eadir", "__macosx", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin", "system volume information",
    "lost+found",
))  # fmt: skip
"""What network drives, archives and file managers leave among one's own folders, in small letters."""

Spell = Callable[[str], str]


def composed(name: str) -> str:
    """A name in Unicode's form NFC: macOS and Linux spell one name in different ways."""
    return unicodedata.normalize("NFC", name)


def is_system_folder(name: str) -> bool:
    """Whether no one keeps images of a class in such a folder; hidden ones are among them."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def find_in_folder(root: Path, spell: Spell = composed, outer: bool = False) -> Found:
    """Images below `root`; the folder an image lies in is its class.

    As timm's reader, with more file types, and with ties of its order settled (1.jpg, 01.jpg), which
    would otherwise be the file system's. Files of other types, system folders and links that lead back are counted.

    Args:
        spell: How names are spelt before they are sorted and compared.
        outer: Whether the class is the outermost folder, directly below `root`.

    Raises:
        DataError: If the folder cannot be read or holds no image in a class folder.
    """
    if not os.access(root, os.R_OK | os.X_OK) or not root.is_dir():
        raise DataError(f"{root} is no folder that can be read", "check data.root")
    rows: list[tuple[str, str]] = []
    below: list[str] = []
    ignored: Counter[str] = Counter()
    for folder, folders, files in os.walk(root, followlinks=True):
        inner = "" if folder == str(root) else os.path.relpath(folder, root).replace(os.sep, "/")
        _leave_out(folder, folders, ignored)
        below = below or list(folders)
        for name in files:
            if is_image(name):
                raw = f"{inner}/{name}" if inner else name
                rows.append((spell(raw), raw))
            elif inner and not name.startswith("."):
                ignored[extension(name)] += 1
    rows.sort(key=lambda row: (natural_key(row[0]), row))
    names = [name for name, _ in rows]
    _check_rows(root, names, ignored)
    return Found(
        where=str(root),
        names=names,
        labels=[name.split("/")[0 if outer else -2] for name in names],
        sizes=file_sizes(root, [raw for _, raw in rows]),
        files=FolderFiles(str(root), as_names([raw for _, raw in rows])),
        folders=True,
        empty=tuple(sorted({spell(name) for name in below} - {name.split("/", 1)[0] for name in names})),
        ignored=most_first(ignored),
        notes=tuple(tree_notes(str(root), names, outer)),
    )


def _leave_out(folder: str, folders: list[str], ignored: Counter[str]) -> None:
    """Take out of `folders` what a walk should not enter, and count it."""
    for name in list(folders):
        path = os.path.join(folder, name)
        if is_system_folder(name):
            ignored[f"{name}/"] += sum(len(files) for _, _, files in os.walk(path))
            folders.remove(name)
        elif os.path.islink(path) and _leads_back(path, folder):
            ignored[f"{name}/ (a link back to a folder above it)"] += 1
            folders.remove(name)


def _leads_back(link: str, folder: str) -> bool:
    target, here = os.path.realpath(link), os.path.realpath(folder)
    return here == target or here.startswith(target.rstrip(os.sep) + os.sep)


def _check_rows(root: Path, names: Sequence[str], ignored: Counter[str]) -> None:
    loose = [name for name in names if "/" not in name]
    if loose:
        raise DataError(
            f"{root} holds images outside of any class folder: {listed(loose)}",
            "put each image into a folder named after its class, or give a table of labels as data.csv; if "
            f"{root.name} itself is a class, give data.layout=classes",
        )
    if not names:
        raise DataError(
            f"{root} holds no images ({', '.join(EXTENSIONS)}) in class folders{_but(ignored)}",
            "data.root is a folder of class folders, or of train and val folders with class folders in them",
        )


def tree_notes(where: str, names: Sequence[str], outer: bool) -> Iterator[str]:
    """How a tree was read whose images do not lie in class folders directly below it."""
    depths = Counter(name.count("/") for name in names)
    if set(depths) == {1}:
        return
    shape = " and ".join(f"{depth} folders deep ({count:,})" for depth, count in sorted(depths.items()))
    inner, first = ({name.split("/")[part] for name in names} for part in (-2, 0))
    classes, others = (first, inner) if outer else (inner, first)
    yield (
        f"{where}: images lie {shape}; the {'outermost' if outer else 'innermost'} folder is the class "
        f"({len(classes):,}: {listed(sorted(classes, key=natural_key))}); data.class_folder="
        f"{'inner' if outer else 'outer'} would make it {len(others):,} ({listed(sorted(others, key=natural_key))})"
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


def plural(count: int, word: str) -> str:
    """A number of things: 1 file, 2 files."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def listed(names: list[str], most: int = 5, between: str = ", ") -> str:
    """The first few names and how many there are."""
    shown = between.join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
