"""What can be told about files before training, without reading them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lmgraft.data.files import counted, listed, plural
from lmgraft.data.image.imagenet_sets import IMAGES, wnids
from lmgraft.data.image.tables import Found, ImageTable
from lmgraft.errors import DataError


def check_sizes(**sizes: float) -> None:
    """Held-out sizes: a share in [0, 1) or a whole count.

    Raises:
        DataError: If one is neither; it names the key.
    """
    for key, size in sizes.items():
        if size < 0 or (size > 1 and size != int(size)):
            raise DataError(f"data.{key}={size}", "give a share such as 0.1, a number of items, or 0")


_IGNORED = 0.03
"""Share of files of other types that is worth a notice in training."""


def ignored_files(found: Found) -> str | None:
    """Which files of a split are passed over, by their type or their folder; None if there are none."""
    if not found.ignored:
        return None
    count = sum(found.ignored.values())
    return f"{found.where}: {plural(count, 'file')} ignored: {counted(found.ignored)}"


def other_totals(found: Mapping[str, Found], class_names: Sequence[str]) -> list[str]:
    """Splits of ImageNet's classes that have not as many images as ImageNet's."""
    if tuple(class_names) != wnids():
        return []
    return [
        f"{part.where} has {len(part.names):,} images; ImageNet's {name} has {IMAGES[key]:,}"
        for split, part in found.items()
        for name, key in [
            ("training split", "imagenet_train") if split == "train" else ("validation split", "imagenet")
        ]
        if len(part.names) != IMAGES[key]
    ]


def notices(found: Mapping[str, Found], class_names: Sequence[str]) -> tuple[str, ...]:
    """What a training says of its data once, though it stops nothing."""
    many = [part for part in found.values() if sum(part.ignored.values()) > _IGNORED * len(part.names)]
    read = (note for part in found.values() for note in part.notes)
    return (*filter(None, map(ignored_files, many)), *read, *other_totals(found, class_names))


def check_table(table: ImageTable, limit: int, things: str) -> None:
    """Refuse a split with more empty files than `limit`, or without any of the `things`.

    Raises:
        DataError: It names the first few.
    """
    if not (table.labels >= 0).any():
        raise DataError(f"{table.where} holds no {things} of the classes asked for", "check data.class_map")
    empty = np.flatnonzero(table.sizes == 0)
    if len(empty) > limit:
        raise DataError(
            f"{table.where} has {plural(len(empty), 'file')} of zero bytes: {listed([table.name(i) for i in empty])}",
            "a copy was cut off: copy or fetch these files again, or remove them",
        )
