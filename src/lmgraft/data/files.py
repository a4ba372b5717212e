"""What sets of files of any kind share: names, folders that systems leave behind, sizes, files by themselves.

Knows no kind of item.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmgraft.checkpoint.cache import cache_dir
from lmgraft.errors import DataError

Names = npt.NDArray[np.bytes_]

_STATS = 2000  # files whose sizes are asked for in one task
_SECONDS = 5.0  # between lines about progress

SYSTEM_FOLDERS = frozenset((
    "@eadir", "__macosx", "#recycle", "@recycle", "@recently-snapshot", "$recycle.bin", "system volume information",
    "lost+found",
))  # fmt: skip
"""What network drives, archives and file managers leave among one's own folders, in small letters."""


def as_names(names: Sequence[str]) -> Names:
    """Strings as one array of bytes."""
    return np.array([os.fsencode(name) for name in names], dtype=np.bytes_)


def composed(name: str) -> str:
    """A name in Unicode's form NFC: macOS and Linux spell one name in different ways."""
    return unicodedata.normalize("NFC", name)


def is_system_folder(name: str) -> bool:
    """Whether no one keeps items of a class in such a folder; hidden ones are among them."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


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


def find_loose(sources: Sequence[str], inside: Callable[[Path], Sequence[Path] | None], what: str) -> list[Path]:
    """Files by name, and all that lie below folders, in order.

    Args:
        sources: Files and folders.
        inside: The files below a folder, in order; None where the folder itself is an item.
        what: What a folder should have held, for the error.

    Raises:
        DataError: If one is not there, or a folder holds none.
    """
    paths: list[Path] = []
    for source in map(Path, sources):
        if not source.exists():
            raise DataError(f"{source} is not there", "check the path")
        below = inside(source) if source.is_dir() else None
        if below is not None and not below:
            raise DataError(f"{source} holds no {what}", "check the path")
        paths += [source] if below is None else below
    return paths


def files_below(folder: Path, endings: Sequence[str]) -> list[Path]:
    """Files of these extensions below a folder, in order; hidden ones and what systems leave behind are passed over.

    Linked folders are entered, those that lead back to a folder above them are not.

    Args:
        folder: Where to look.
        endings: In small letters, with their dots.
    """
    files: list[Path] = []
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_system_folder(name) and not leads_back(where, name)]
        files += [Path(where, name) for name in names if name.lower().endswith(tuple(endings)) and name[0] != "."]
    return sorted(files)


def leads_back(folder: str, name: str) -> bool:
    """Whether what is called so in a folder is a link to that folder, or to one above it."""
    path = os.path.join(folder, name)
    if not os.path.islink(path):
        return False
    inside, above = os.path.realpath(folder), os.path.realpath(path)
    return os.path.commonpath([inside, above]) == above


def identity_of(files: Sequence[Path], root: Path) -> str:
    """A digest of names and sizes of files, wherever they lie; contents are not read."""
    rows = (f"{file.relative_to(root)}\0{file.stat().st_size if file.exists() else -1}\n" for file in files)
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def stamp_of(files: Sequence[Path]) -> str:
    """A digest of the times at which files were last changed."""
    times = (f"{file.stat().st_mtime_ns if file.exists() else 0}\n" for file in files)
    return hashlib.sha256("".join(times).encode()).hexdigest()


def prepared_place(name: str) -> Path:
    """Where a set that `lmgraft prepare` makes lies unless one says otherwise."""
    return cache_dir() / "data" / name


def check_prepared(folder: Path, name: str, last: str = "set.json") -> None:
    """Refuse a set that `lmgraft prepare` has not written whole.

    Args:
        folder: Where it is looked for.
        name: Of the set.
        last: The file that is written last.

    Raises:
        DataError: Naming the command.
    """
    if not (folder / last).is_file():
        raise DataError(f"{folder} holds no prepared set", f"lmgraft prepare {name}")


class SlowLines:
    """What is called again and again by long work, and writes a line to the terminal every five seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._last > _SECONDS:
            self._last = time.monotonic()
            sys.stderr.write(f"{line}\n")


@cache
def say_once(text: str) -> None:
    """Write to the terminal what was not written before: a process makes a recipe's data several times."""
    sys.stderr.write(text)
