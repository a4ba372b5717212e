"""Files that are equal, byte by byte: copies and links of one image, which must not lie on both sides of a split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import numpy as np
import numpy.typing as npt

from lmgraft.data.files import listed, plural
from lmgraft.data.image.tables import FileRanges, FolderFiles, ImageTable

_SAMPLE = 4096  # bytes from the middle of each file, compared before files are read whole
_THREADS = 16

Place = tuple[int, int]
"""Which table, and which of its images."""


def equal_files(tables: Sequence[ImageTable]) -> list[list[Place]]:
    """Groups of equal files in these tables. Only files of one size are read: first a little of each, then all."""
    places = [
        (table, int(index))
        for table, content in enumerate(tables)
        if isinstance(content.files, FolderFiles | FileRanges)
        for index in np.flatnonzero((content.sizes > 0) & (content.labels >= 0))
    ]
    groups = [places]
    with ThreadPoolExecutor(_THREADS) as pool:
        for key in (_size, _middle, _whole):
            asked = [place for group in groups for place in group]
            answers = iter(pool.map(lambda place: key(tables[place[0]], place[1]), asked))  # noqa: B023
            parts = [sorted((next(answers), place) for place in group) for group in groups]
            split = [list(equal) for part in parts for _, equal in groupby(part, key=lambda row: row[0])]
            groups = [[place for _, place in equal] for equal in split if len(equal) > 1]
    return sorted(groups)


def _size(table: ImageTable, index: int) -> bytes:
    return int(table.sizes[index]).to_bytes(8, "big")


def _middle(table: ImageTable, index: int) -> bytes:
    size = int(table.sizes[index])
    return _read(table, index, max(0, size // 2 - _SAMPLE // 2), min(_SAMPLE, size))


def _whole(table: ImageTable, index: int) -> bytes:
    return _read(table, index, 0, int(table.sizes[index]))


def _read(table: ImageTable, index: int, offset: int, size: int) -> bytes:
    """SHA-256 of a stretch; of a file that cannot be read its path, which no other has."""
    assert isinstance(table.files, FolderFiles | FileRanges)
    try:
        return hashlib.sha256(table.files.stretch(index, offset, size)).digest()
    except (OSError, EOFError):
        return os.fsencode(table.place(index))


def representatives(count: int, groups: Sequence[Sequence[Place]]) -> npt.NDArray[np.int64]:
    """For each image of the first table the first one that is equal to it; itself where it is the only one."""
    first = np.arange(count)
    for group in groups:
        members = [index for table, index in group if table == 0]
        first[members] = min(members, default=0)
    return first


def equal_notes(tables: Mapping[str, ImageTable], groups: Sequence[Sequence[Place]], things: str) -> Iterator[str]:
    """What a training says of equal files.

    Args:
        tables: By split, in the order that the places of `groups` count them.
        things: What the files are called, in the plural.
    """
    splits = list(tables)
    shown = [[(splits[table], tables[splits[table]], index) for table, index in group] for group in groups]
    if not shown:
        return
    examples = listed([listed([table.name(index) for _, table, index in group], 3, " = ") for group in shown], 3, "; ")
    originals = plural(len(shown), things.removesuffix("s"))
    yield f"{sum(map(len, shown)):,} files are copies of, or links to, {originals}: {examples}"
    torn = sum(len({int(table.labels[index]) for _, table, index in group}) > 1 for group in shown)
    if torn:
        yield f"{torn:,} of these lie under different classes: one of their labels is wrong"
    across = sum(len({split for split, *_ in group}) > 1 for group in shown)
    if across:
        yield f"{across:,} of these lie in several splits: accuracy on them is no evidence"
