"""Which images are for training, which choose the epoch, and which test: what a data set has, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmgraft.data.files import as_names
from lmgraft.data.holdout import Index, hold_out
from lmgraft.data.image.checks import check_table, notices
from lmgraft.data.image.classes import number_classes
from lmgraft.data.image.equal import equal_files, equal_notes, representatives
from lmgraft.data.image.settings import Settings
from lmgraft.data.image.tables import Found, ImageTable
from lmgraft.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Train, val and test: which images of which table."""

    class_names: tuple[str, ...]
    tables: dict[str, ImageTable]
    index: dict[str, Index]
    selection: Literal["val", "test"]
    notices: tuple[str, ...] = ()
    """What is odd but stops nothing."""


_COMPARED = 100_000
"""Images in splits of their own up to which a training looks for equal files across them; check-data always does."""


def make_splits(settings: Settings, found: dict[str, Found], things: str = "images") -> Splits:
    """Check the files, and hold out what the data set has no split for.

    Args:
        found: The splits that the data set itself has.
        things: What messages call the files, in the plural.

    Raises:
        DataError: If something is missing or does not agree.
    """
    names, numbers = number_classes(found, settings.classes, settings.class_map, settings.root)
    tables = {split: _table(part, numbers[split]) for split, part in found.items()}
    if "test" not in tables and "val" in tables:
        tables["test"] = tables.pop("val")
    for split, table in tables.items():
        limit = settings.max_corrupt_test if split == "test" else settings.max_corrupt
        check_table(table, limit, things)
    index = {split: np.flatnonzero(table.labels >= 0) for split, table in tables.items()}
    sizes = {"test": settings.test_size, "val": settings.val_size}
    wanted = {split: size for split, size in sizes.items() if split not in tables and size}
    train = tables["train"]
    groups = []
    if settings.split_version > 1 and (wanted or sum(map(len, index.values())) <= _COMPARED):
        groups = equal_files(list(tables.values()))
    remarks = (*notices(found, names), *equal_notes(tables, groups, things))
    index |= _held_out(train, index["train"], wanted, names, representatives(len(train), groups), things)
    tables |= dict.fromkeys(wanted, train)
    if "test" not in tables:
        raise DataError(f"{train.where} has no test {things}", "make data.test_size more than 0")
    selection: Literal["val", "test"] = "val" if "val" in tables else "test"
    tables.setdefault("val", tables["test"])
    index.setdefault("val", index["test"])
    return Splits(class_names=names, tables=tables, index=index, selection=selection, notices=remarks)


def _table(part: Found, labels: Index) -> ImageTable:
    return ImageTable(
        where=part.where,
        names=as_names(part.names),
        labels=labels,
        sizes=part.sizes,
        files=part.files,
        contents=part.contents,
    )


def _held_out(
    table: ImageTable,
    used: Index,
    sizes: dict[str, int | float],
    class_names: tuple[str, ...],
    first: Index,
    things: str,
) -> dict[str, Index]:
    """Positions of "train" and of each held-out part; equal images go where the first of them goes.

    A class whose images are all copies of other classes' is held out by itself: one of the labels is wrong.
    """
    alone = used[first[used] == used]
    copied = np.isin(table.labels, np.setdiff1d(table.labels[used], table.labels[alone]))
    first = np.where(copied, np.arange(len(first)), first)
    alone = used[first[used] == used]
    parts = hold_out(table.names[alone], table.labels[alone], sizes, class_names, table.where, things)
    return {split: used[np.isin(first[used], alone[part])] for split, part in parts.items()}
