"""The texts of one split as plain data: what questions and captions share before they are shown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmgraft.data.files import as_names
from lmgraft.data.holdout import hold_out
from lmgraft.errors import DataError

Index = npt.NDArray[np.int64]
Categories = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The texts of one split, as their files have them, each about one image."""

    where: str
    """What an error calls them."""
    root: Path
    """Folder of the images."""
    names: Sequence[str]
    """(I,) images, relative to root."""
    image: Sequence[int]
    """(N,) the image of each text."""
    texts: Sequence[str]
    """(N,)"""
    kinds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Category -> (N,) the part that each text is of."""

    def digest(self) -> str:
        """SHA-256 of all that is said of each text, and of which image it is about."""
        digest = hashlib.sha256()
        for row in zip(self.image, self.texts, *self.more(), *self.kinds.values(), strict=True):
            digest.update(repr((self.names[row[0]], *row[1:])).encode())
        return digest.hexdigest()

    def more(self) -> tuple[Sequence[object], ...]:
        """(N,) each: what else identifies a text."""
        return ()


def held_out_images(part: Part, size: int | float) -> dict[str, Index]:
    """Texts of "train" and "val", all of an image on one side.

    Args:
        size: Of val, in images: a share (below 1) or a count.
    """
    labels = np.zeros(len(part.names), np.int64)
    sides = hold_out(as_names(list(part.names)), labels, {"val": size}, ("any",), part.where)
    image = np.asarray(part.image)
    return {split: np.flatnonzero(np.isin(image, side)) for split, side in sides.items()}


def categories_of(parts: Iterable[Part]) -> dict[str, tuple[str, ...]]:
    """Category -> its parts, over all splits."""
    parts = list(parts)
    names = list(dict.fromkeys(name for part in parts for name in part.kinds))
    return {name: tuple(sorted({kind for part in parts for kind in part.kinds.get(name, ())})) for name in names}


def kind_numbers(part: Part, categories: Categories, index: Index) -> Index:
    """(N, K) the number of each text's part in each category.

    Raises:
        DataError: If the split does not divide its texts so.
    """
    columns = []
    for name, kinds in categories.items():
        numbers = {kind: number for number, kind in enumerate(kinds)}
        if name not in part.kinds:
            raise DataError(f"{part.where} does not say the {name} of its texts, and other splits do")
        columns.append([numbers[part.kinds[name][i]] for i in index])
    return np.array(columns, np.int64).reshape(len(columns), len(index)).T.copy()
