"""Held-out shares, chosen by a hash of each item's name: adding files moves none of the others."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from lmgraft.data.files import Names, listed
from lmgraft.errors import DataError

Index = npt.NDArray[np.int64]


def name_hashes(names: Names) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each name, the same everywhere."""
    words = b"".join(hashlib.blake2b(bytes(name), digest_size=8).digest() for name in names)
    return (np.frombuffer(words, "<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hold_out(
    names: Names,
    labels: npt.NDArray[np.int64],
    sizes: dict[str, int | float],
    class_names: tuple[str, ...],
    where: str,
    things: str = "images",
) -> dict[str, Index]:
    """Indices of "train" and of each held-out part, in the order of the source.

    A size below 1 is a share: an item is held out if its hash lies in the part's interval. A class of which that takes
    all or none keeps or gives one, as far as it has two. Other sizes are counts: the items with the smallest hashes.

    Args:
        names, labels: Of each item.
        sizes: Of the parts, such as {"test": 0.1, "val": 5000}.
        class_names: Of the labels.
        where: What an error calls the source.
        things: What the items are called, in the plural.

    Raises:
        DataError: If nothing of a class is left for training, or of all items.
    """
    hashes, every = name_hashes(names), np.arange(len(class_names))
    part = np.zeros(len(names), np.int8)
    begin = 0.0
    for number, (key, size) in enumerate(sizes.items(), 1):
        if size < 1:
            part[(part == 0) & (hashes >= begin) & (hashes < begin + size)] = number
            for label in np.setdiff1d(every, labels[part == 0]):
                _move(part, hashes, (labels == label) & (part == number), to=0)
            for label in np.setdiff1d(every, labels[part == number]):
                left = (labels == label) & (part == 0)
                if left.sum() > 1:
                    _move(part, -hashes, left, to=number)
            begin += size
        else:
            left = np.flatnonzero(part == 0)
            if size >= len(left):
                raise DataError(f"data.{key}_size={size}: {where} has {len(left):,} {things}", "make it smaller")
            part[left[np.argsort(hashes[left], kind="stable")[: int(size)]]] = number
    lacking = [class_names[label] for label in np.setdiff1d(every, labels[part == 0])]
    if lacking:
        raise DataError(
            f"{where}: with {' and '.join(sizes)} held out, no training {things} are left of {listed(lacking)}",
            f"add {things}, or hold out less: " + ", ".join(f"data.{key}_size={size}" for key, size in sizes.items()),
        )
    parts = {key: np.flatnonzero(part == number) for number, key in enumerate(sizes, 1)}
    return {"train": np.flatnonzero(part == 0), **parts}


def _move(part: npt.NDArray[np.int8], hashes: npt.NDArray[np.float64], among: npt.NDArray[np.bool_], to: int) -> None:
    """Move the one with the largest hash of these, if there is any."""
    index = np.flatnonzero(among)
    if len(index):
        part[index[np.argmax(hashes[index])]] = to
