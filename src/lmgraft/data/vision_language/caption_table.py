"""The captions of a split as plain data, tables of them, and which pictures a caption fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmgraft.data.vision_language.parts import Index, Part
from lmgraft.data.vision_language.rows import Row, images_and_texts, kinds_of, rows_by_split
from lmgraft.errors import DataError

KINDS = ("category", "wording")
"""Columns that divide captions: by what is shown, and by how it is put."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Captions(Part):
    """The captions of one split, as their files have them."""

    concepts: Sequence[str] = ()
    """(I,) what each image shows: captions fit all pictures of their concept. Empty: each image is its own."""

    def more(self) -> tuple[Sequence[object], ...]:
        return ([self.concepts[image] for image in self.image],) if self.concepts else ()

    def shown(self) -> Sequence[str]:
        return self.concepts or self.names

    def concept_numbers(self) -> Index:
        """(I,) the concept of each image, numbered by first coming."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(name, len(numbers)) for name in self.shown()], np.int64)


def find_captions(file: Path, root: Path | None) -> dict[str, Captions]:
    """The captions of each split that a table names, or all under `rows.ANY`.

    Its columns: image (a path), caption, and if wanted split, concept, category, wording.

    Args:
        root: What images are relative to; the table's own folder by default.

    Raises:
        DataError: If the table cannot be read, a row lacks something, or an image has two concepts.
    """
    splits = rows_by_split(file, ("image", "caption"))
    return {split: _captions(file, root or file.parent, split, rows) for split, rows in splits.items()}


def _captions(file: Path, root: Path, split: str, rows: Sequence[Row]) -> Captions:
    shared = images_and_texts(file, root, split, rows, "caption")
    named = kinds_of(rows, ("concept",)).get("concept", ())
    concepts: dict[int, str] = {}
    for (where, _), number, concept in zip(rows, shared["image"], named, strict=bool(named)):
        if concepts.setdefault(number, concept) != concept:
            raise DataError(f"{where}: the image has concept {concepts[number]!r} in an earlier row", "give it one")
    return Captions(
        **shared,
        concepts=[concepts[number] for number in range(len(concepts))],
        kinds=kinds_of(rows, KINDS),
    )


def plain(text: str) -> str:
    """A caption as it is compared: small letters, single spaces."""
    return " ".join(text.lower().split())


class Fits(NamedTuple):
    """Which captions fit which images: those whose number is among the image's."""

    caption: Index
    """(N,) the number of each caption."""
    of_concept: Index
    """(K, M) the numbers that fit an image of each concept, -1 behind the last."""

    @classmethod
    def of(cls, texts: Sequence[str], concept: Index, equal_texts: bool) -> Fits:
        """Captions fit all images of their concept.

        Args:
            concept: (N,) of each caption's own image.
            equal_texts: Captions of the same words fit what any of them is about.
        """
        if not equal_texts:
            return cls(concept, np.arange(int(concept.max(initial=-1)) + 1)[:, None])
        numbers: dict[str, int] = {}
        caption = np.array([numbers.setdefault(plain(text), len(numbers)) for text in texts], np.int64)
        pairs = np.unique(np.stack([concept, caption], 1), axis=0)
        counts = np.bincount(pairs[:, 0])
        of_concept = np.full((len(counts), int(counts.max())), -1, np.int64)
        of_concept[pairs[:, 0], np.arange(len(pairs)) - (np.cumsum(counts) - counts)[pairs[:, 0]]] = pairs[:, 1]
        return cls(caption, of_concept)

    def shared(self) -> int:
        """How many different captions fit more than one concept."""
        return int((np.bincount(self.of_concept[self.of_concept >= 0]) > 1).sum())


def count_captions(table: Path) -> dict[str, int]:
    """How much a table of one split has, and how many of its captions fit several concepts."""
    (part,) = find_captions(table, None).values()
    concept = part.concept_numbers()[list(part.image)]
    return {
        "pictures": len(part.names), "captions": len(part.texts), "concepts": int(concept.max()) + 1,
        "captions_of_several_concepts": Fits.of(part.texts, concept, equal_texts=True).shared(),
    }  # fmt: skip
