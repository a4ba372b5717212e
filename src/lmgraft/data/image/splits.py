"""Which images are for training, which choose the epoch, and which test: what a data set has, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmgraft.data.image.checks import check_table, notices
from lmgraft.data.image.classes import number_classes
from lmgraft.data.image.holdout import Index, hold_out
from lmgraft.data.image.layouts import find_splits
from lmgraft.data.image.settings import Settings
from lmgraft.data.image.tables import ImageTable, as_names
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


def make_splits(settings: Settings) -> Splits:
    """Find and check the images, and hold out what the data set has no split for.

    Raises:
        DataError: If something is missing or does not agree.
    """
    found = find_splits(settings)
    names, numbers = number_classes(found, settings.classes, settings.class_map, settings.root)
    tables = {
        split: ImageTable(
            where=part.where,
            names=as_names(part.names),
            labels=numbers[split],
            sizes=part.sizes,
            files=part.files,
            contents=part.contents,
        )
        for split, part in found.items()
    }
    if "test" not in tables and "val" in tables:
        tables["test"] = tables.pop("val")
    for split, table in tables.items():
        check_table(table, limit=settings.max_corrupt_test if split == "test" else settings.max_corrupt)
    index = {split: np.flatnonzero(table.labels >= 0) for split, table in tables.items()}
    sizes = {"test": settings.test_size, "val": settings.val_size}
    wanted = {split: size for split, size in sizes.items() if split not in tables and size}
    train, used = tables["train"], index["train"]
    parts = hold_out(train.names[used], train.labels[used], wanted, names, train.where)
    index |= {split: used[part] for split, part in parts.items()}
    tables |= dict.fromkeys(wanted, train)
    if "test" not in tables:
        raise DataError(f"{train.where} has no test images", "make data.test_size more than 0")
    selection: Literal["val", "test"] = "val" if "val" in tables else "test"
    tables.setdefault("val", tables["test"])
    index.setdefault("val", index["test"])
    return Splits(class_names=names, tables=tables, index=index, selection=selection, notices=notices(found, names))
