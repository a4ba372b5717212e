"""Composed objects: emoji, or garments, on drawn backgrounds; classification with masks that anyone can make.

<set>/images/{train,val,test,unseen}/<class>/<number>_<concept>.png   unseen: test's concepts in another art style
<set>/masks/...                                                      the same names, 255 on the object
<set>/set.json                                                       source, licence, split, procedure; written last
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lmgraft.checkpoint.cache import scratch_dir
from lmgraft.data.files import as_names, check_prepared, prepared_place
from lmgraft.data.holdout import hold_out
from lmgraft.data.image.composing import Composing, Objects, Thing, opaque, scaled, tight, write_composed
from lmgraft.data.image.fashion_mnist import FashionMNIST
from lmgraft.data.image.mask_folders import MaskFolders
from lmgraft.data.image.masks import MaskedSet
from lmgraft.data.image.tables import Found
from lmgraft.data.npm import Package, fetch_package, read_members

STYLES = {
    "google": Package(
        "emoji-datasource-google", "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        74_344_091,
    ),
    "twitter": Package(
        "emoji-datasource-twitter", "16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        61_683_754,
    ),
    "fluent": Package(
        "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        15_792_027,
    ),
}  # fmt: skip
"""Art style -> its package; the last one is kept from training."""
UNSEEN = "fluent"
COUNTS = {"train": 12_000, "val": 1_500, "test": 2_000, "unseen": 2_000}
_SHARES: dict[str, int | float] = {"test": 0.2, "val": 0.1}
_SIDE = 64  # pixels of an object's longer side, before it is composed
_LEAST = 0.2  # of the square around an object that it must cover
_PEOPLE = {"200d", "fe0f", "2640", "2642", "27a1", "1f468", "1f469", "1f9d1"}
"""Code points that make one concept several emoji: joiners, genders, directions."""
LICENCES = {
    "google": "Noto Emoji, Apache-2.0",
    "twitter": "Twemoji, CC-BY-4.0, copyright Twitter and contributors",
    "fluent": "Fluent Emoji, MIT, copyright Microsoft",
}


class Emoji(NamedTuple):
    """One emoji in several art styles."""

    code: str
    category: str
    pictures: dict[str, Image.Image]

    @property
    def concept(self) -> str:
        """What it shares with emoji that show the same in another gender or direction."""
        points = self.code.split("-")
        return "-".join([point for point in points if point not in _PEOPLE] or points)


def read_emoji(files: Mapping[str, Path]) -> tuple[list[Emoji], dict[str, int]]:
    """All emoji that every style has, and why how many others are left out.

    Args:
        files: Style -> its package's file; "google"'s also names and categories.
    """
    content = {
        style: read_members(file, ("emoji.json", f"img/{style}/64/", "assets/")) for style, file in files.items()
    }
    kept, lost = [], {"not in every style": 0, "too thin": 0}
    for row in json.loads(content["google"]["emoji.json"]):
        if row["category"] == "Component":
            continue
        code = row["unified"].lower()
        places = [(f"img/{style}/64/{row['image']}", f"assets/{code}.webp", f"assets/{code.replace('-fe0f', '')}.webp")
                  for style in files]  # fmt: skip
        drawn = {
            style: next((part[name] for name in names if name in part), None)
            for (style, part), names in zip(content.items(), places, strict=True)
        }
        pictures = {style: _object(of) for style, of in drawn.items() if of is not None}
        if len(pictures) < len(files):
            lost["not in every style"] += 1
        elif any(_covered(picture) < _LEAST for picture in pictures.values()):
            lost["too thin"] += 1
        else:
            kept.append(Emoji(code, row["category"].lower().replace(" & ", "-"), pictures))
    return kept, lost


def _object(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as image:
        return scaled(tight(image.convert("RGBA")), _SIDE)


def _covered(picture: Image.Image) -> float:
    """The share of the square around an object that it covers."""
    return opaque(picture).histogram()[255] / max(picture.size) ** 2


def split_emoji(emoji: Sequence[Emoji]) -> dict[str, list[Emoji]]:
    """Training, validation and test, no concept on two sides, by a hash of the concept's code points."""
    first = {one.concept: one.category for one in reversed(emoji)}
    concepts, classes = sorted(first), sorted(set(first.values()))
    labels = np.array([classes.index(first[concept]) for concept in concepts], np.int64)
    parts = hold_out(as_names(concepts), labels, _SHARES, tuple(classes), "emoji", "concept")
    side = {concepts[i]: split for split, index in parts.items() for i in index}
    return {split: [one for one in emoji if side[one.concept] == split] for split in ("train", "val", "test")}


def _objects(emoji: Sequence[Emoji], styles: Sequence[str]) -> Objects:
    names = sorted({one.category for one in emoji})
    return {
        name: [Thing(one.concept, one.pictures[style]) for one in emoji if one.category == name for style in styles]
        for name in names
    }


def make_set(
    files: Mapping[str, Path], folder: Path, counts: Mapping[str, int] = COUNTS, how: Composing | None = None
) -> Path:
    """The set in `folder` from the packages' files.

    Args:
        counts: Split -> pictures.
    """
    emoji, lost = read_emoji(files)
    parts = split_emoji(emoji)
    seen = [style for style in files if style != UNSEEN]
    objects = {split: _objects(part, seen) for split, part in parts.items()}
    objects["unseen"] = _objects(parts["test"], [UNSEEN])
    about = {
        "name": ComposedObjects.name,
        "source": {style: str(package) for style, package in STYLES.items()},
        "licence": LICENCES,
        "changes": "emoji were cut to what is opaque, scaled, turned and laid on drawn backgrounds",
        "split": "by a hash of each concept's code points without joiners, genders and directions: a fifth for test, a "
        f"tenth for val; {' and '.join(seen)} are in train, val and test, {UNSEEN} of test's concepts in unseen",
        "concepts": {split: len({one.concept for one in part}) for split, part in parts.items()},
        "left_out": lost,
    }
    splits = {split: (of, counts[split]) for split, of in objects.items()}
    return write_composed(folder, splits, how or Composing(), about)


class ComposedSet(MaskedSet):
    """Some pictures of a set; those of one concept belong together."""

    @property
    def groups(self) -> Tensor:  # type: ignore[override]
        return self._groups

    @cached_property
    def _groups(self) -> Tensor:
        names = [self.table.name(index).rpartition("_")[2] for index in self.indices.tolist()]
        first = dict(zip(reversed(names), reversed(self.indices.tolist()), strict=True))
        return torch.tensor([first[name] for name in names])


class ComposedObjects(MaskFolders):
    """Emoji on drawn backgrounds, after `lmgraft prepare composed-objects`. The group of an item is its concept.

    Args:
        root: The set's folder; None is lmgraft's cache.
        style: Which pictures test: seen, of the art styles of training, or unseen, of another.
        options: See `ImageFiles`.
    """

    name = "composed-objects"
    file_set = ComposedSet

    def __init__(self, root: str | None = None, *, style: Literal["seen", "unseen"] = "seen", **options: Any) -> None:
        self.tree = prepared_place(self.name) if root is None else Path(root).expanduser()
        options = {"img_size": Composing().size, "crop_pct": 1.0, **options}
        test = {"unseen": "unseen", "seen": "test"}[style]
        super().__init__(
            root=str(self.tree / "images"), masks=str(self.tree.absolute() / "masks"), test_split=test, **options
        )

    def find(self) -> dict[str, Found]:
        check_prepared(self.tree, self.name)
        found = super().find()
        return found | {"train": replace(found["train"], notes=())}  # the split that is not asked for lies beside


def prepare(out: Path | None) -> Path:
    """Fetch the emoji and compose the set, unless it is there; minutes."""
    folder = prepared_place(ComposedObjects.name) if out is None else out
    if (folder / "set.json").exists():
        return folder
    with scratch_dir(ComposedObjects.name) as scratch:
        return make_set({style: fetch_package(package, scratch) for style, package in STYLES.items()}, folder)


class GarmentsOnTextures(ComposedObjects):
    """Fashion-MNIST's garments on drawn backgrounds, after `lmgraft prepare garments-on-textures`.

    Args:
        root: The set's folder; None is lmgraft's cache.
        options: See `ImageFiles`.
    """

    name = "garments-on-textures"

    def __init__(self, root: str | None = None, **options: Any) -> None:
        super().__init__(root, **options)


def prepare_garments(out: Path | None) -> Path:
    """Compose the set from Fashion-MNIST, unless it is there: no garment on two sides."""
    folder = prepared_place(GarmentsOnTextures.name) if out is None else out
    if (folder / "set.json").exists():
        return folder
    source = FashionMNIST()
    halves = {half: source.load(train=half == "train") for half in ("train", "test")}
    last = len(halves["train"][0]) * 9 // 10
    parts = {"train": ("train", slice(last)), "val": ("train", slice(last, None)), "test": ("test", slice(None))}
    splits = {}
    for split, (half, index) in parts.items():
        pictures, labels = halves[half][0][index, 0].numpy(), halves[half][1][index].tolist()
        garments: dict[str, list[Thing]] = {name.replace("/", "-"): [] for name in source.class_names}
        names = list(garments)
        for number, (label, grey) in enumerate(zip(labels, pictures, strict=True), index.start or 0):
            if len(garments[names[label]]) < COUNTS[split]:
                cut = np.dstack([grey] * 3 + [np.where(grey > 24, 255, 0).astype(np.uint8)])
                garments[names[label]].append(Thing(f"{half}-{number}", tight(Image.fromarray(cut))))
        splits[split] = (garments, COUNTS[split])
    about = {
        "name": GarmentsOnTextures.name,
        "source": "Fashion-MNIST (Xiao, Rasul, Vollgraf)",
        "licence": "MIT",
        "changes": "garments were cut out where they are brighter than 24 of 255 and laid on backgrounds",
        "split": "Fashion-MNIST's own test half; val is the last tenth of its training half",
    }
    return write_composed(folder, splits, Composing(), about)


class DrawnObjects(ComposedObjects):
    """Polygons on drawn backgrounds, written when first used: for `debug` recipes and tests.

    Args:
        root: Where the set is or shall be; None is lmgraft's cache.
        options: See `ImageFiles`.
    """

    name = "drawn-objects"

    def __init__(self, root: str | None = None, **options: Any) -> None:
        super().__init__(root, **options)

    def prepare_data(self) -> None:
        if not (self.tree / "set.json").is_file():
            write_drawn(self.tree)
        super().prepare_data()


def write_drawn(folder: Path, counts: Mapping[str, int] | None = None, how: Composing | None = None) -> Path:
    """Compose a set of triangles, squares and hexagons."""
    counts = {"train": 96, "val": 24, "test": 24, "unseen": 24} if counts is None else counts
    splits: dict[str, tuple[Objects, int]] = {}
    for number, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng(number)
        shapes = {"triangle": 3, "square": 4, "hexagon": 6}
        splits[split] = (
            {
                name: [Thing(f"{split}-{name}-{n}", _polygon(sides, rng)) for n in range(8)]
                for name, sides in shapes.items()
            },
            count,
        )
    return write_composed(
        folder, splits, how or Composing(size=32), {"name": DrawnObjects.name, "licence": "none needed"}
    )


def _polygon(sides: int, rng: np.random.Generator) -> Image.Image:
    shown = Image.new("RGBA", (_SIDE, _SIDE))
    colour = tuple(int(value) for value in rng.integers(0, 256, 3))
    circle = (_SIDE / 2, _SIDE / 2, _SIDE / 2 - 1)
    ImageDraw.Draw(shown).regular_polygon(circle, sides, rotation=int(rng.integers(360)), fill=(*colour, 255))
    return tight(shown)
