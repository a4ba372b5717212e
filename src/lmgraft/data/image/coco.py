"""COCO's instance annotations as images of one class each, with masks (Lin et al., ECCV 2014).

<root>/annotations/instances_{train2017,val2017}.json
<root>/{train2017,val2017}/*.jpg

Polygons are filled, and run lengths decoded, by lmgraft's own code: edges may differ by a pixel from pycocotools'.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from lmgraft.data.files import as_names, file_sizes
from lmgraft.data.image.masked import Instances, MaskedImages, of_known_classes, with_masks
from lmgraft.data.image.masks import IGNORED, Mask
from lmgraft.data.image.tables import FolderFiles, Found
from lmgraft.errors import DataError

Segment = Sequence[Sequence[float]] | Mapping[str, Any]
"""Polygons [[x, y, x, y, ...], ...], or run lengths {"size": [H, W], "counts": ...}."""
Bits = npt.NDArray[np.bool_]

_FINER, _HALF = 4, 128
"""Polygons are drawn so much finer, and a pixel belongs to one where half of it does."""


@dataclass(frozen=True)
class Annotated:
    """What an image's class has in it."""

    height: int
    width: int
    objects: tuple[Segment, ...]
    unknown: tuple[Segment, ...]
    """Crowds, and objects that were not chosen."""


@dataclass(frozen=True)
class CocoMasks:
    """Masks from annotations."""

    images: tuple[Annotated, ...]

    def read(self, index: int) -> Mask:
        image = self.images[index]
        mask = np.zeros((image.height, image.width), np.uint8)
        for segments, value in ((image.unknown, IGNORED), (image.objects, 1)):
            for segment in segments:
                mask[decode_segment(segment, image.height, image.width)] = value
        return mask


def decode_segment(segment: Segment, height: int, width: int) -> Bits:
    """(H, W): polygons filled, or run lengths decoded.

    Raises:
        ValueError: If it is neither, or of another size.
    """
    if isinstance(segment, Mapping):
        if list(segment["size"]) != [height, width]:
            raise ValueError(f"run lengths of {segment['size']} for an image of {height} x {width}")
        counts = segment["counts"]
        return _of_runs(decode_counts(counts) if isinstance(counts, str) else counts, height, width)
    shown = Image.new("L", (_FINER * width, _FINER * height))
    for polygon in segment:
        if len(polygon) >= 6:
            ImageDraw.Draw(shown).polygon([_FINER * float(value) - 0.5 for value in polygon], fill=255)
    return np.asarray(shown.reduce(_FINER)) >= _HALF


def _of_runs(counts: Sequence[int], height: int, width: int) -> Bits:
    """Lengths of background and object in turn, down the columns."""
    if sum(counts) != height * width or min(counts) < 0:
        raise ValueError(f"run lengths that sum to {sum(counts)} for an image of {height} x {width}")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(width, height).T


def decode_counts(text: str) -> list[int]:
    """Run lengths out of COCO's text: five bits a letter, the sixth says that more follow; from the third length on
    each is the difference to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


class CocoInstances(MaskedImages):
    """COCO's images with instance masks. An image's class is the category whose objects have the largest area in it.

    Crowds count neither as object nor as background. Images without an object are left out. Validation images are held
    out of the training split; without one, test images too, of the only split that there is.

    Args:
        root: The folder that holds annotations/, train2017/ and val2017/.
        instances: all: the object is everything of the image's class; largest: its largest object, while others of it
            count neither way.
        train_name: The training split; where its annotations are not there, all is taken out of the test split.
        test_name: The test split.
        options: See `ImageFiles`.
    """

    name = "coco_instances"

    def __init__(
        self,
        root: str | None = None,
        *,
        instances: Instances = "all",
        train_name: str = "train2017",
        test_name: str = "val2017",
        **options: Any,
    ) -> None:
        super().__init__(root=root, **options)
        self.instances, self.names = instances, (train_name, test_name)

    def find(self) -> dict[str, Found]:
        root = self.root("give the folder of annotations/ and the images: --data.root coco")
        files = {name: root / "annotations" / f"instances_{name}.json" for name in self.names}
        here = [name for name in self.names if files[name].is_file()]
        if not here:
            raise DataError(f"neither {' nor '.join(map(str, files.values()))} is there", "check data.root")
        content = {name: _read(files[name]) for name in here}
        splits = dict(zip(("train", "test"), here, strict=False))
        try:
            first = sorted(content[here[0]]["categories"], key=lambda row: row["id"])
            found = {split: _found(root / name, content[name], self.instances) for split, name in splits.items()}
            return of_known_classes(found, [row["name"] for row in first])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{root / 'annotations'}: an instance annotation lacks {error}", "unpack it again"
            ) from None


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {key: list(content[key]) for key in ("images", "annotations", "categories")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{file} holds no instance annotations ({error!r})", "it has images, annotations and categories"
        ) from None


def _found(folder: Path, content: Mapping[str, list[dict[str, Any]]], instances: Instances) -> Found:
    """The images of a split, and the masks of the class that is largest in each."""
    categories = {row["id"]: row["name"] for row in content["categories"]}
    rows: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in content["annotations"]:
        rows[row["image_id"]].append(row)
    images = sorted(content["images"], key=lambda row: row["id"])
    classes = [_largest(rows[image["id"]]) for image in images]
    masks = [
        _annotated(image, [row for row in rows[image["id"]] if row["category_id"] == number], instances)
        for image, number in zip(images, classes, strict=True)
    ]
    names = [image["file_name"] for image in images]
    sizes = file_sizes(folder, names)
    if (sizes < 0).any():
        raise DataError(f"{(sizes < 0).sum():,} of the {len(names):,} images are not in {folder}", "unpack it again")
    found = Found(
        where=str(folder),
        names=names,
        labels=["" if number is None else categories[number] for number in classes],
        sizes=sizes,
        files=FolderFiles(str(folder), as_names(names)),
    )
    digest = hashlib.sha256()
    for mask in masks:
        digest.update(repr(mask).encode())
    return with_masks(found, CocoMasks(tuple(masks)), digest.digest())


def _largest(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The category of the largest area, crowds apart; of equal ones the smaller number."""
    areas: defaultdict[int, float] = defaultdict(float)
    for row in rows:
        if not row.get("iscrowd", 0):
            areas[row["category_id"]] += row["area"]
    return min(areas, key=lambda number: (-areas[number], number)) if areas else None


def _annotated(image: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], instances: Instances) -> Annotated:
    """The segments of an image's class."""
    single = sorted((row for row in rows if not row.get("iscrowd", 0)), key=lambda row: (-row["area"], row["id"]))
    chosen = single if instances == "all" else single[:1]
    others = [*single[len(chosen) :], *(row for row in rows if row.get("iscrowd", 0))]
    objects, unknown = (tuple(row["segmentation"] for row in part) for part in (chosen, others))
    return Annotated(image["height"], image["width"], objects, unknown)
