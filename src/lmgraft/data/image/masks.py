"""True masks of images: how they are read, and how they follow their images through evaluation's preprocessing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lmgraft.data.files import Names
from lmgraft.data.image.file_set import ImageFileSet
from lmgraft.data.image.reading import Pixels, Style
from lmgraft.data.image.tables import UNREADABLE, FolderFiles
from lmgraft.data.image.transforms import Preprocess, evaluation_transform
from lmgraft.data.labelled import LabelledBatch
from lmgraft.data.loader import Draw, Reported

Mask = npt.NDArray[np.uint8]
"""(H, W): 1 on the object, 0 elsewhere, `IGNORED` where it is not known."""

IGNORED = 255
ANY = -1
"""In place of the number that is the object: every number but 0."""
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height

Flaw = Literal["missing", "unreadable", "of another size than the image", "empty"]
"""What can be wrong with a mask; an item with one of the first three has no known object."""


class Masks(Protocol):
    """Random access to the masks of a table of images; as `Files`, it holds no open file."""

    def read(self, index: int) -> Mask | None:
        """The mask of an image, of the image's own size; None where there is none.

        Raises:
            UNREADABLE: One of these, if its file is damaged.
        """


@dataclass(frozen=True)
class MaskedFolder(FolderFiles):
    """Image files below `root`, with their masks."""

    masks: Masks | None = None


@dataclass(frozen=True)
class MaskPictures:
    """Masks in image files of class numbers, one for each image."""

    root: str
    names: Names
    """Below `root`; empty where an image has none."""
    values: npt.NDArray[np.int64]
    """The number that is the object, or `ANY`."""
    ignored: int | None = None
    """The number of what is not known."""

    def read(self, index: int) -> Mask | None:
        name = os.fsdecode(bytes(self.names[index]))
        if not name:
            return None
        numbers, value = class_numbers(os.path.join(self.root, name)), int(self.values[index])
        mask: Mask = (numbers != 0 if value == ANY else numbers == value).astype(np.uint8)
        if self.ignored is not None:
            mask[numbers == self.ignored] = IGNORED
        return mask


def class_numbers(path: str) -> npt.NDArray[np.int64]:
    """(H, W): the numbers of a mask's pixels; of colours R + 256 G + 65,536 B, of palettes the index.

    JPEG blurs numbers, so that there dark is 0 and light 255. An alpha channel is passed over.
    """
    with Image.open(path) as image:
        if image.format == "JPEG":
            return np.where(np.asarray(image.convert("L")) < 128, 0, 255)
        bands = image.getbands()
        values = np.asarray(image).astype(np.int64)
    if values.ndim == 2:
        return values
    colours: Any = [values[..., n] for n, band in enumerate(bands) if band not in ("A", "a")]
    numbers: npt.NDArray[np.int64] = sum(colour << (8 * n) for n, colour in enumerate(colours))
    return numbers


def known_mask(files: MaskedFolder, index: int, style: Style) -> tuple[Mask | None, Flaw | None]:
    """The mask of an image, and what is wrong with it."""
    try:
        mask = None if files.masks is None else files.masks.read(index)
    except UNREADABLE:
        return None, "unreadable"
    if mask is None:
        return None, "missing"
    if _size(files, index, style) not in (None, mask.shape):
        return None, "of another size than the image"
    return mask, None if (mask == 1).any() else "empty"


def _size(files: MaskedFolder, index: int, style: Style) -> tuple[int, ...] | None:
    """Height and width of an image as it is read; None where it cannot be."""
    try:
        with files.open(index) as image:
            if isinstance(image, Pixels):
                return image.values.shape[:2]
            turned = style == "viewer" and image.getexif().get(0x0112, 1) in _TURNED and image.format != "TIFF"
            return image.size if turned else image.size[::-1]
    except UNREADABLE:
        return None


def flaws(files: MaskedFolder, count: int, style: Style) -> Iterator[Flaw | None]:
    """What is wrong with each of the masks."""
    for index in range(count):
        yield known_mask(files, index, style)[1]


class MaskTransform:
    """Evaluation's preprocessing of masks: the steps of the images, each pixel taken from the nearest one."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.steps = evaluation_transform(replace(preprocess, interpolation="nearest")).before
        self.size = preprocess.img_size

    def __call__(self, mask: Mask | None) -> Tensor:
        """(H, W) uint8 of the model's input size; of no mask nothing is known."""
        if mask is None:
            return torch.full(self.size, IGNORED, dtype=torch.uint8)
        shown: Any = Image.fromarray(mask)
        for step in self.steps:
            shown = step(shown)
        return torch.from_numpy(np.array(shown))


class ImagesWithTruth(NamedTuple):
    """Images, their classes, and where the object is; see `contracts.BatchWithTruth`."""

    inputs: Tensor
    """(B, C, H, W) float."""
    labels: Tensor
    """(B,) int64."""
    index: Tensor  # type: ignore[assignment] # of tuples it is a method
    """(B,) int64."""
    group: Tensor
    """(B,) int64."""
    truth: Tensor
    """(B, H, W) bool, of the model's input pixels."""
    ignored: Tensor
    """(B, H, W) bool, where that is not known: all of an image without a usable mask."""


class MaskedSet(ImageFileSet):
    """Some images of a table, as evaluation sees them with their masks; in training without."""

    def __getitems__(self, draws: list[Draw]) -> Reported:
        loaded = super().__getitems__(draws)
        files = self.table.files
        if self.draws or not isinstance(files, MaskedFolder) or files.masks is None:
            return loaded
        transform, style = MaskTransform(self.preprocess), self.preprocess.reading
        batch = loaded.batch
        assert isinstance(batch, LabelledBatch)
        masks = torch.stack([transform(known_mask(files, index, style)[0]) for index in batch.index.tolist()])
        return Reported(ImagesWithTruth(*batch, masks == 1, masks == IGNORED), loaded.faults)
