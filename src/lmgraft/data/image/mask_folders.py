"""Images with mask files beside them: any folder, and ImageNet-S."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmgraft.data.files import as_names, composed, file_sizes, listed
from lmgraft.data.image.folders import find_in_folder, tree_notes
from lmgraft.data.image.images import images_below
from lmgraft.data.image.layouts import find_splits
from lmgraft.data.image.masked import MaskedImages, only, with_pictures
from lmgraft.data.image.masks import ANY, MaskPictures
from lmgraft.data.image.tables import FolderFiles, Found
from lmgraft.errors import DataError

_TRAIN, _SEMI, _VALIDATION = "train", "train-semi", "validation"
_IGNORED = 1000


class MaskFolders(MaskedImages):
    """Images in folders, or named in a table, with a mask file for each.

    The mask of cats/tom.jpg is cats/tom.png in the folder `masks`, or tom.png directly in it, of any type of image;
    with `suffix: _mask` it is called tom_mask.png, and lies beside the image unless `masks` is given.

    Args:
        root: The folder of the images.
        masks: The folder of the masks; root/masks where that is a folder.
        suffix: What the name of a mask has behind that of its image.
        value: The number of the object in a mask's pixels; every number but 0 by default.
        ignored: The number of pixels of which it is not known.
        unlabelled: Whether the images have no classes: they lie anywhere below root, and can only be looked at.
        options: See `ImageFiles`.
    """

    name = "mask_folders"

    def __init__(
        self,
        root: str | None = None,
        *,
        masks: str | None = None,
        suffix: str = "",
        value: int | None = None,
        ignored: int | None = None,
        unlabelled: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(root=root, **options)
        if masks is None and not suffix:
            raise DataError("neither data.masks nor data.suffix is given", "say where the masks are: --data.masks DIR")
        self.masks, self.suffix, self.unlabelled = masks, suffix, unlabelled
        self.value, self.ignored = ANY if value is None else value, ignored

    def find(self) -> dict[str, Found]:
        place = self._place()
        found = {"train": _loose(place)} if self.unlabelled else find_splits(self.settings)
        given = Path(self.masks or "").expanduser()
        folder = given if self.masks and not (place / given).is_dir() else place / given
        if not folder.is_dir():
            raise DataError(f"data.masks={self.masks}: {folder} is no folder", "check the path")
        if folder == place and not self.suffix:
            raise DataError(f"data.masks={self.masks} is the folder of the images", "say by data.suffix what a mask is")
        known = _stems(folder)
        paired = {split: self._paired(part, folder, known) for split, part in found.items()}
        counts = Counter(name for _, names in paired.values() for name in names if name)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise DataError(
                f"{folder}: several images have the mask {listed(twice)}", "let masks lie in folders as their images do"
            )
        return {
            split: with_pictures(
                part,
                MaskPictures(str(folder), as_names(names), np.full(len(names), self.value, np.int64), self.ignored),
            )
            for split, (part, names) in paired.items()
        }

    def _place(self) -> Path:
        """What names of masks are relative to."""
        given = self.settings.root or (self.settings.csv and os.path.dirname(self.settings.csv)) or "."
        return Path(given).expanduser()

    def _paired(self, part: Found, folder: Path, known: Mapping[str, str]) -> tuple[Found, list[str]]:
        """The images of a split without the masks among them, and the mask of each; "" where there is none."""
        if not isinstance(part.files, FolderFiles):
            raise DataError(f"{part.where}: images in tars or other libraries have no masks beside them", "unpack them")
        place = self._place()
        paths = [Path(part.files.path(n)) for n in range(len(part.names))]
        inside = place in folder.parents
        wanted = [
            not (inside and folder in path.parents) and not (self.suffix and path.stem.endswith(self.suffix))
            for path in paths
        ]
        names = [self._mask_of(path, place, known) for path, keep in zip(paths, wanted, strict=True) if keep]
        kept = only(part, np.array(wanted, bool))
        if inside and part.folders:  # what was noted of the tree was noted of the masks as well
            kept = replace(kept, notes=tuple(tree_notes(part.where, kept.names, self.settings.class_folder == "outer")))
        return kept, names

    def _mask_of(self, path: Path, place: Path, known: Mapping[str, str]) -> str:
        """The name of an image's mask in the folder of masks; "" if there is none."""
        inner = path.relative_to(place) if place in path.parents else Path(path.name)
        for start in range(len(inner.parts)):
            shorter = Path(*inner.parts[start:])
            for key in (shorter.with_suffix(""), shorter):
                name = known.get(composed(key.as_posix() + self.suffix))
                if name is not None:
                    return name
        return ""


def _stems(folder: Path) -> dict[str, str]:
    """Name without its type -> name, of all images below a folder."""
    names = (path.relative_to(folder).as_posix() for path in images_below(folder))
    return {composed(os.path.splitext(name)[0]): name for name in names}


def _loose(folder: Path) -> Found:
    """All images below a folder, of no class."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder that can be read", "check data.root")
    names = [path.relative_to(folder).as_posix() for path in images_below(folder)]
    if not names:
        raise DataError(f"{folder} holds no images", "check data.root")
    files = FolderFiles(str(folder), as_names(names))
    return Found(
        where=str(folder), names=names, labels=["unlabelled"] * len(names), sizes=file_sizes(folder, names), files=files
    )


class ImageNetS(MaskedImages):
    """ImageNet-S as its authors' scripts lay it out (Gao et al., arXiv 2106.03149).

    Below root, which is ImageNetS50, ImageNetS300 or ImageNetS919: train/<wnid>/, train-semi/<wnid>/ with
    train-semi-segmentation/, validation/<wnid>/ with validation-segmentation/<wnid>/*.png. Training images are those of
    train, without masks, else of train-semi; where there are neither, some are held out of validation.

    A mask's number is R + 256 G: the place of the class among the sorted names of all classes, from 1; 0 is anything
    else, 1000 is not known. The object of an item is what belongs to its own class.

    Args:
        root: The folder.
        options: See `ImageFiles`.
    """

    name = "imagenet_s"

    def __init__(self, root: str | None = None, **options: Any) -> None:
        super().__init__(root=root, **options)

    def find(self) -> dict[str, Found]:
        root = self.root("give the folder: --data.root ImageNetS50")
        train = next((name for name in (_TRAIN, _SEMI) if (root / name).is_dir()), None)
        places = {"train": train or _VALIDATION} | ({"test": _VALIDATION} if train else {})
        found = {split: find_in_folder(root / name, self.settings.spell) for split, name in places.items()}
        numbers = _numbers_of(root, (label for part in found.values() for label in part.labels))
        return {
            split: _with_segments(part, root / f"{places[split]}-segmentation", numbers)
            for split, part in found.items()
        }


def _numbers_of(root: Path, labels: Iterable[str]) -> dict[str, int]:
    """The number of each class in masks.

    Raises:
        DataError: If classes are missing: the numbers of those behind them would be other ones.
    """
    names = sorted(set(labels))
    size = re.search(r"(?:^|\D)(50|300|919)$", root.resolve().name)
    if size is not None and len(names) != int(size[1]):
        raise DataError(f"{root} has {len(names)} classes, not {size[1]}", "the numbers in its masks go by all of them")
    return {name: number for number, name in enumerate(names, 1)}


def _with_segments(part: Found, folder: Path, numbers: Mapping[str, int]) -> Found:
    if not folder.is_dir():
        if folder.name.startswith(_VALIDATION):
            raise DataError(f"{folder} is no folder", "ImageNet-S has the masks of its validation images there")
        return part
    known = _stems(folder)
    names = [known.get(os.path.splitext(name)[0], "") for name in part.names]
    values = np.array([numbers[label] for label in part.labels], np.int64)
    return with_pictures(part, MaskPictures(str(folder), as_names(names), values, _IGNORED))
