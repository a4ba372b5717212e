"""Pascal VOC's segmentation sets as images of one class each, with masks.

<root>/JPEGImages/*.jpg
<root>/SegmentationClass/*.png    palette: the number of a class, 0 background, 255 borders and what is too hard
<root>/SegmentationObject/*.png   palette: the number of an object, the same 0 and 255
<root>/ImageSets/Segmentation/{train,val}.txt

Everingham et al., IJCV 2010.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmgraft.data.files import as_names, file_sizes
from lmgraft.data.image.masked import Instances, MaskedImages, of_known_classes, with_pictures
from lmgraft.data.image.masks import IGNORED, Mask, MaskPictures, class_numbers
from lmgraft.data.image.tables import UNREADABLE, FolderFiles, Found
from lmgraft.errors import DataError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""In the order of their numbers, from 1."""
_BORDER = 255


@dataclass(frozen=True)
class LargestObject(MaskPictures):
    """As `MaskPictures`, but of the objects of the class only the largest; of the others nothing is known."""

    objects: str = ""
    """The folder of the objects' numbers, in files of the same names."""

    def read(self, index: int) -> Mask | None:
        mask = super().read(index)
        if mask is None:
            return None
        numbers = class_numbers(os.path.join(self.objects, os.fsdecode(bytes(self.names[index]))))
        if numbers.shape != mask.shape:
            raise ValueError("the masks of classes and of objects differ in size")
        sizes = np.bincount(numbers[mask == 1], minlength=1)
        mask[(mask == 1) & (numbers != sizes.argmax())] = IGNORED
        return mask


class PascalVOC(MaskedImages):
    """Pascal VOC's segmentation images. An image's class is the one with most pixels in SegmentationClass.

    The list val is the test split; validation images are held out of train.

    Args:
        root: VOCdevkit/VOC2012, or another year.
        instances: all: the object is everything of the image's class; largest: the largest object of that class, while
            others of it count neither way.
        train_list: Name of the list of training images; trainval and train_aug are others.
        test_list: Name of the list of test images.
        options: See `ImageFiles`.
    """

    name = "pascal_voc"

    def __init__(
        self,
        root: str | None = None,
        *,
        instances: Instances = "all",
        train_list: str = "train",
        test_list: str = "val",
        **options: Any,
    ) -> None:
        super().__init__(root=root, **options)
        self.instances, self.lists = instances, {"train": train_list, "test": test_list}

    def find(self) -> dict[str, Found]:
        root = self.root("give the folder of a year: --data.root VOCdevkit/VOC2012")
        return of_known_classes({split: self._listed(root, name) for split, name in self.lists.items()}, CLASSES)

    def _listed(self, root: Path, name: str) -> Found:
        file = root / "ImageSets" / "Segmentation" / f"{name}.txt"
        try:
            stems = file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{file} cannot be read ({error})", "data.root holds JPEGImages, SegmentationClass and ImageSets"
            ) from None
        names, masks = [f"{stem}.jpg" for stem in stems], [f"{stem}.png" for stem in stems]
        folder, classes = root / "JPEGImages", root / "SegmentationClass"
        sizes = file_sizes(folder, names)
        if (sizes < 0).any():
            raise DataError(f"{file} names {(sizes < 0).sum():,} images that are not in {folder}", "unpack it again")
        numbers = np.array([_most(classes / mask) for mask in masks], np.int64)
        found = Found(
            where=str(folder),
            names=names,
            labels=[CLASSES[number - 1] if number else "" for number in numbers],
            sizes=sizes,
            files=FolderFiles(str(folder), as_names(names)),
        )
        known = as_names([mask if (classes / mask).exists() else "" for mask in masks])
        if self.instances == "all":
            return with_pictures(found, MaskPictures(str(classes), known, numbers, _BORDER))
        objects = str(root / "SegmentationObject")
        return with_pictures(found, LargestObject(str(classes), known, numbers, _BORDER, objects))


def _most(mask: Path) -> int:
    """The class with most pixels in a mask, of equal ones the first; 0 if it has none or cannot be read."""
    try:
        numbers: npt.NDArray[np.int64] = class_numbers(str(mask))
    except UNREADABLE:
        return 0
    pixels = np.bincount(numbers[(numbers > 0) & (numbers <= len(CLASSES))], minlength=1)
    return int(pixels.argmax()) if pixels.any() else 0
