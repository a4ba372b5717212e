"""The texts of one split as plain data: what questions and captions share before they are shown."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from lmgraft.data.files import as_names, listed, plural
from lmgraft.data.holdout import hold_out
from lmgraft.errors import DataError

Index = npt.NDArray[np.int64]
Categories = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The texts of one split, as their files have them, each about one image."""

    thing: ClassVar[str] = "image"
    """What each text is about."""
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

    def shown(self) -> Sequence[str]:
        """(I,) what each image shows, by name: images that show one thing are held out together."""
        return self.names

    def more(self) -> tuple[Sequence[object], ...]:
        """(N,) each: what else identifies a text."""
        return ()


def held_out_images(part: Part, size: int | float) -> dict[str, Index]:
    """Texts of "train" and "val", all of an image, and of images that show one thing, on one side.

    Args:
        size: Of val, in images, or in things that they show: a share (below 1) or a count.

    Raises:
        DataError: If nothing is left for training.
    """
    shown = part.shown()
    numbers = {name: number for number, name in enumerate(dict.fromkeys(shown))}
    labels = np.zeros(len(numbers), np.int64)
    things = f"{part.thing}s" if shown is part.names else "concepts"
    sides = hold_out(as_names(list(numbers)), labels, {"val": size}, ("any",), part.where, things)
    of_text = np.array([numbers[name] for name in shown], np.int64)[np.asarray(part.image)]
    return {split: np.flatnonzero(np.isin(of_text, side)) for split, side in sides.items()}


def images_in_both(parts: Mapping[str, tuple[Part, Index]]) -> list[str]:
    """Which splits share images, by their paths: a sentence for each two that do.

    Args:
        parts: Split -> its part, and which of its texts are used.
    """
    paths = {
        split: {os.path.abspath(part.root / part.names[image]) for image in np.unique(np.asarray(part.image)[index])}
        for split, (part, index) in parts.items()
    }
    shared = {pair: sorted(paths[pair[0]] & paths[pair[1]]) for pair in combinations(paths, 2)}
    return [
        f"{plural(len(both), parts[second][0].thing)} of {second} also in {first}: {listed(both)}"
        for (first, second), both in shared.items()
        if both
    ]


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
