"""The cells of a robustness suite: which images, how they are shown, what is a right answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lmgraft.data.image.corruptions import CORRUPTIONS, SEVERITIES, SIZE, VERSION, corrupt, find_corruption
from lmgraft.data.image.corruptions_frost import Picture, frost_pictures
from lmgraft.data.image.imagenet_sets import PublishedSet
from lmgraft.data.image.images import RawImages
from lmgraft.data.image.tables import UNREADABLE

Item = tuple[Tensor, tuple[int, ...]] | str
"""An image (C, H, W) and the right classes, or why it could not be read."""
Batch = tuple[Tensor, list[tuple[int, ...]]] | str

Prepare = Callable[[Image.Image], Tensor]

CLEAN = "clean"


@dataclass(frozen=True)
class ShownImages(Dataset[Item]):
    """A data set's test images, clean or corrupted, in the order of `chosen`."""

    raw: RawImages
    prepare: Prepare
    chosen: Sequence[int]
    corruption: tuple[str, int] | None = None
    seed: int = 0
    frost: Sequence[Picture] = ()

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, position: int) -> Item:
        index = self.chosen[position]
        try:
            image, label = self.raw[index]
        except UNREADABLE as error:  # a worker's exception would arrive as a screenful
            return f"test image {index} cannot be read: {error}"
        if self.corruption is not None:
            image = corrupt(image, *self.corruption, seed=self.seed, index=index, frost=self.frost)
        return self.prepare(image), (int(label),)


@dataclass(frozen=True)
class ShownFiles(Dataset[Item]):
    """Images of a published set, in the order of `chosen`."""

    files: PublishedSet
    prepare: Prepare
    chosen: Sequence[int]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, position: int) -> Item:
        index = self.chosen[position]
        path = self.files.root / self.files.files[index]
        try:
            with Image.open(path) as image:
                shown = image.convert("RGB")
        except UNREADABLE as error:
            return f"{path} cannot be read: {error}"
        return self.prepare(shown), self.files.targets[index]


def collate(items: list[Item]) -> Batch:
    images, rights = [], []
    for item in items:
        if isinstance(item, str):
            return item
        images.append(item[0])
        rights.append(item[1])
    return torch.stack(images), rights


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One set of images on which a model is counted."""

    key: str
    """"clean", "corruptions/fog/3", "imagenet_c/fog/3", "imagenet_a" ..."""
    dataset: Dataset[Item]
    size: int
    classes: tuple[int, ...] | None = None
    """The classes among which the model may choose; None for all."""
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """What besides key and weights decides the count; a cell counted under others is counted again."""


def spread(size: int, limit: int | None) -> range | list[int]:
    """All of `size` images or `limit` of them, evenly spread, since files lie class by class."""
    if limit is None or limit >= size:
        return range(size)
    return [i * size // limit for i in range(limit)]


def corruption_cells(
    raw: RawImages,
    prepare: Prepare,
    fingerprint: Mapping[str, Any],
    *,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    seed: int = 0,
    limit: int | None = None,
    frost: Sequence[Picture] = (),
) -> list[Cell]:
    """The clean test images and each corruption at each severity, made on the fly.

    Args:
        raw: Item i is (image, label).
        prepare: The evaluation transform, normalisation included.
        fingerprint: What identifies the data.
        frost: Pictures, if "frost" is among the corruptions.
    """
    chosen = spread(len(raw), limit)
    known = {"data": digest(fingerprint), "limit": limit}
    cells = [
        Cell(
            key=CLEAN,
            dataset=ShownImages(raw, prepare, chosen),
            size=len(chosen),
            conditions=known,
        )
    ]
    for name in corruptions:
        drawn: dict[str, Any] = {"seed": seed, "version": VERSION} | (
            {"frost": _pictures_digest(frost)} if find_corruption(name).pictures else {}
        )
        cells += [
            Cell(
                key=f"corruptions/{name}/{severity}",
                dataset=ShownImages(raw, prepare, chosen, (name, severity), seed, frost),
                size=len(chosen),
                conditions=known | drawn,
            )
            for severity in SEVERITIES
        ]
    return cells


def set_cells(sets: Sequence[PublishedSet], prepare: Prepare, crop: Prepare, limit: int | None = None) -> list[Cell]:
    """A cell for each published set.

    Args:
        prepare: The evaluation transform.
        crop: The transform of ImageNet-C, see `crop_transform`.
    """
    cells = []
    for files in sets:
        chosen = spread(len(files), limit)
        show = crop if files.transform == "crop" else prepare
        cells.append(
            Cell(
                key=files.name,
                dataset=ShownFiles(files, show, chosen),
                size=len(chosen),
                classes=files.classes,
                conditions={"data": files.digest(), "limit": limit},
            )
        )
    return cells


def crop_transform(mean: Sequence[float], std: Sequence[float], img_size: tuple[int, int]) -> Prepare:
    """ImageNet-C's: a centre crop of 224 pixels, no resizing, and normalisation.

    A model for another image size is shown that crop resized.
    """
    from torchvision import transforms

    resize = (
        [] if tuple(img_size) == (SIZE, SIZE) else [transforms.Resize(img_size, transforms.InterpolationMode.BICUBIC)]
    )
    steps = [transforms.CenterCrop(SIZE), *resize, transforms.ToTensor(), transforms.Normalize(mean, std)]
    composed: Prepare = transforms.Compose(steps)
    return composed


def needed_pictures(corruptions: Sequence[str], folder: Path | None) -> tuple[Picture, ...]:
    """The pictures of frost, if one of the corruptions wants them."""
    wanted = any(find_corruption(name).pictures for name in corruptions)
    return frost_pictures(folder) if wanted else ()


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _pictures_digest(pictures: Sequence[Picture]) -> str:
    hasher = hashlib.sha256()
    for picture in pictures:
        hasher.update(str(picture.shape).encode() + picture.tobytes())
    return hasher.hexdigest()
