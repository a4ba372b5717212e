"""Composed objects: emoji, or garments, on drawn backgrounds; classification with masks that anyone can make.

<set>/images/{train,val,test,unseen}/<class>/<number>_<concept>.png   unseen: test's concepts in another art style
<set>/masks/...                                                      the same names, 255 on the object
<set>/set.json                                                       source, licence, split, procedure; written last
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lmgraft.checkpoint.cache import scratch_dir
from lmgraft.data.files import check_prepared, prepared_place
from lmgraft.data.image.composing import Composing, Objects, Thing, tight, write_composed
from lmgraft.data.image.emoji import (
    ORIGIN,
    SIDE,
    UNSEEN,
    Emoji,
    fetch_named,
    fetch_styles,
    read_emoji,
    split_emoji,
)
from lmgraft.data.image.fashion_mnist import FashionMNIST
from lmgraft.data.image.mask_folders import MaskFolders
from lmgraft.data.image.masks import MaskedSet
from lmgraft.data.image.tables import Found

_CHANGES = "emoji were cut to what is opaque, scaled, turned and laid on drawn backgrounds"
COUNTS = {"train": 12_000, "val": 1_500, "test": 2_000, "unseen": 2_000}


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
        **ORIGIN,
        "changes": _CHANGES,
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
    file_set: ClassVar[type[MaskedSet]] = ComposedSet

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
        return make_set(fetch_styles(scratch), folder)


class ComposedEmoji(ComposedObjects):
    """Two dozen emoji to be told apart, after `lmgraft prepare composed-emoji`; every picture is by itself.

    Args:
        root: The set's folder; None is lmgraft's cache.
        style: See `ComposedObjects`.
        options: See `ImageFiles`.
    """

    name = "composed-emoji"
    file_set: ClassVar[type[MaskedSet]] = MaskedSet

    def __init__(self, root: str | None = None, *, style: Literal["seen", "unseen"] = "seen", **options: Any) -> None:
        options = {"img_size": _NAMED.size, **options}
        super().__init__(root, style=style, **options)


_NAMED = Composing(size=48, area=(0.2, 0.5), pieces=2)
_NAMED_COUNTS = {"train": 8_000, "val": 1_000, "test": 2_000, "unseen": 2_000}


def prepare_named(out: Path | None) -> Path:
    """Fetch the emoji and compose the set of those that have a name, unless it is there; minutes."""
    folder = prepared_place(ComposedEmoji.name) if out is None else out
    if (folder / "set.json").exists():
        return folder
    return write_named(folder, fetch_named(ComposedEmoji.name), _NAMED_COUNTS)


def write_named(folder: Path, styles: Mapping[str, Mapping[str, Image.Image]], counts: Mapping[str, int]) -> Path:
    """The set in `folder`.

    Args:
        styles: Art style -> name -> picture; `UNSEEN` is kept from training.
        counts: Split -> pictures.
    """
    names = sorted(styles[UNSEEN])
    objects = {
        name: [Thing(f"{name}-{style}", of[name]) for style, of in styles.items() if style != UNSEEN] for name in names
    }
    unseen = {name: [Thing(f"{name}-{UNSEEN}", styles[UNSEEN][name])] for name in names}
    about = {
        "name": ComposedEmoji.name,
        **ORIGIN,
        "changes": _CHANGES,
        "split": f"every split shows the same things in other pictures; {UNSEEN} is in unseen alone",
    }
    splits = {split: (unseen if split == "unseen" else objects, count) for split, count in counts.items()}
    return write_composed(folder, splits, _NAMED, about)


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
    shown = Image.new("RGBA", (SIDE, SIDE))
    colour = tuple(int(value) for value in rng.integers(0, 256, 3))
    circle = (SIDE / 2, SIDE / 2, SIDE / 2 - 1)
    ImageDraw.Draw(shown).regular_polygon(circle, sides, rotation=int(rng.integers(360)), fill=(*colour, 255))
    return tight(shown)
