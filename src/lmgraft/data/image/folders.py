"""Folders of class folders, found as timm's reader finds them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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
    most_first,
)
from lmgraft.data.image.opening import EXTENSIONS, is_image
from lmgraft.data.image.tables import FolderFiles, Found
from lmgraft.errors import DataError

Spell = Callable[[str], str]


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
        elif leads_back(folder, name):
            ignored[f"{name}/ (a link back to a folder above it)"] += 1
            folders.remove(name)


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
