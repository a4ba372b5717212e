"""What data sets of images with masks share: checks of the masks, and items for a model trained elsewhere."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from lmgraft.data.base import Data, SplitName
from lmgraft.data.check import Findings, Grid, ShowProgress
from lmgraft.data.files import as_names, file_sizes, listed, plural, say_once
from lmgraft.data.image.image_files import ImageFiles
from lmgraft.data.image.masks import Flaw, Mask, MaskedFolder, MaskedSet, MaskPictures, Masks, flaws
from lmgraft.data.image.tables import FolderFiles, Found, ImageTable
from lmgraft.data.image.transforms import Preprocess, evaluation_transform
from lmgraft.data.items import OtherItems
from lmgraft.errors import DataError

Instances = Literal["all", "largest"]
"""Which of the objects of an image's class its mask shows."""

_FLAWS: tuple[Flaw, ...] = ("missing", "unreadable", "of another size than the image", "empty")


class MaskedImages(ImageFiles):
    """Images in files with masks of their objects: class_path names the layout, a subclass of this.

    Evaluation's batches have `truth` and `ignored` (`masks.ImagesWithTruth`), training's have not.
    """

    file_set = MaskedSet

    @abstractmethod
    def find(self) -> dict[str, Found]:
        """The splits that there are; the files of those with masks are a `MaskedFolder`."""

    def check(self, workers: int, progress: ShowProgress, near: bool = False) -> Findings:
        findings = super().check(workers, progress, near)
        if findings.problems:
            return findings
        rows = []
        for split, part in self._found.items():
            if not isinstance(part.files, MaskedFolder) or part.files.masks is None:
                continue
            named: dict[str, list[str]] = {flaw: [] for flaw in _FLAWS}
            with progress(f"{split}, masks", len(part.names)) as tell:
                for name, flaw in zip(
                    part.names, flaws(part.files, len(part.names), self.preprocess.reading), strict=True
                ):
                    if flaw is not None:
                        named[flaw].append(name)
                    tell(1, flaw == "unreadable")
            rows.append((split, f"{len(part.names):,}", *(f"{len(names):,}" for names in named.values())))
            findings.details.setdefault("masks", {})[split] = named
            findings.remarks += [
                f"{split}: {plural(len(names), 'mask')} {flaw}: {listed(names)}"
                for flaw, names in named.items()
                if names
            ]
        findings.grids.append(Grid(("split", "images", "no mask", *_FLAWS[1:]), rows, "masks"))
        return findings

    def root(self, advice: str) -> Path:
        """The folder of the data.

        Raises:
            DataError: If none is given; with `advice`.
        """
        if self.settings.root is None:
            raise DataError("data.root is missing", advice)
        return Path(self.settings.root).expanduser()

    @cached_property
    def _found(self) -> dict[str, Found]:
        return self.find()

    def _part(self, split: SplitName) -> Found:
        return self._found.get(split) or self._found.get("val" if split == "test" else split) or self._found["train"]

    def shown_to(self, data: Data) -> OtherItems:
        """Images of the model's classes, matched by name as `looking` does it; all images where it has none of them."""
        if not isinstance(data, ImageFiles):
            raise DataError(
                f"a model of {data.name} is not shown other images",
                "this needs a model that was trained on image files",
            )
        part = self._part("test")
        if not isinstance(part.files, MaskedFolder) or part.files.masks is None:
            raise DataError(f"{part.where}: these images have no masks")
        common = set(map(_plain, data.class_names)) & set(map(_plain, part.labels))
        items = self.looking(data.class_names if common else sorted(set(part.labels)), data.preprocess)
        about = {"name": self.name, "where": part.where, "sha256": items.table.digest(), "items": len(items)}
        return OtherItems(items, bool(common), about | {"labelled": bool(common)})

    def looking(
        self,
        class_names: Sequence[str],
        preprocess: Preprocess | None = None,
        names: Mapping[str, str] | None = None,
        split: SplitName = "test",
    ) -> MaskedSet:
        """Images with masks for a model that was trained on other images, classes matched by name.

        Names are compared without regard to case, spaces, hyphens and underscores. Images of classes that the model
        lacks are left out, and a line says how many.

        Args:
            class_names: The model's classes in the order of its outputs.
            preprocess: The model's; by default this data set's.
            names: This data set's name of a class -> the model's, where they differ.
            split: Of this data set; where it has only one, all of it.

        Raises:
            DataError: If no class is common to both.
        """
        part = self._part(split)
        numbers = {_plain(name): number for number, name in reversed(list(enumerate(class_names)))}
        ours = names or {}
        labels = np.array([numbers.get(_plain(ours.get(label, label)), -1) for label in part.labels], np.int64)
        index = np.flatnonzero(labels >= 0)
        if not len(index):
            raise DataError(
                f"{part.where}: the model has none of its classes ({listed(sorted(set(part.labels)))})",
                "map them by `names`, this data set's name -> the model's",
            )
        if len(index) < len(labels):
            others = sorted({label for label, number in zip(part.labels, labels, strict=True) if number < 0})
            say_once(
                f"note: {part.where}: {plural(len(labels) - len(index), 'image')} left out, of classes that the model "
                f"lacks: {listed(others)}\n"
            )
        preprocess = preprocess or self.preprocess
        table = ImageTable(
            where=part.where, names=as_names(part.names), labels=labels, sizes=part.sizes, files=part.files,
            contents=part.contents,
        )  # fmt: skip
        return MaskedSet(table, index, evaluation_transform(preprocess), preprocess)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in " -_")


@dataclass(frozen=True)
class Chosen:
    """Some of other masks."""

    masks: Masks
    index: npt.NDArray[np.int64]

    def read(self, index: int) -> Mask | None:
        return self.masks.read(int(self.index[index]))


def with_masks(found: Found, masks: Masks, identity: bytes) -> Found:
    """These images with masks.

    Args:
        found: Images in a folder.
        identity: What tells the masks from others; it becomes part of the data's fingerprint.
    """
    assert isinstance(found.files, FolderFiles)
    files = MaskedFolder(found.files.root, found.files.names, masks)
    return replace(found, files=files, contents=found.contents + hashlib.sha256(identity).hexdigest())


def with_pictures(found: Found, masks: MaskPictures) -> Found:
    """These images with masks in files, whose names and sizes identify them."""
    sizes = file_sizes(Path(masks.root), [os.fsdecode(bytes(name)) for name in masks.names])
    sizes[masks.names == b""] = -1
    return with_masks(found, masks, b"".join(column.tobytes() for column in (masks.names, sizes, masks.values)))


def only(found: Found, kept: npt.NDArray[np.bool_]) -> Found:
    """Some of these images, in a folder, with their masks."""
    assert isinstance(found.files, FolderFiles)
    index = np.flatnonzero(kept)
    files = FolderFiles(found.files.root, found.files.names[index])
    if isinstance(found.files, MaskedFolder) and found.files.masks is not None:
        files = MaskedFolder(files.root, files.names, Chosen(found.files.masks, index))
    return replace(
        found,
        names=[name for name, keep in zip(found.names, kept, strict=True) if keep],
        labels=[label for label, keep in zip(found.labels, kept, strict=True) if keep],
        sizes=found.sizes[index],
        files=files,
    )


def of_known_classes(splits: Mapping[str, Found], order: Sequence[str]) -> dict[str, Found]:
    """These splits without images of no class ("") or of one that training does not have, which a note counts.

    Args:
        order: All classes that there can be, in their order; those of training become the classes.
    """
    trained = set(splits["train"].labels)
    classes = tuple(name for name in order if name in trained)
    result = {}
    for split, part in splits.items():
        kept = np.array([label in classes for label in part.labels], bool)
        lost = len(kept) - int(kept.sum())
        note = (f"{part.where}: {plural(lost, 'image')} left out, without an object or of a class that training lacks",)
        result[split] = replace(only(part, kept), classes=classes, notes=part.notes + (note if lost else ()))
    return result
