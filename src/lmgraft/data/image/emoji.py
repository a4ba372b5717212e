"""Emoji in several art styles, from packages of the npm registry: their categories, concepts and some names."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lmgraft.checkpoint.cache import scratch_dir
from lmgraft.data.files import as_names
from lmgraft.data.holdout import hold_out
from lmgraft.data.image.composing import opaque, scaled, tight
from lmgraft.data.npm import Package, fetch_package, read_members
from lmgraft.errors import DataError

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
LICENCES = {
    "google": "Noto Emoji, Apache-2.0",
    "twitter": "Twemoji, CC-BY-4.0, copyright Twitter and contributors",
    "fluent": "Fluent Emoji, MIT, copyright Microsoft",
}
ORIGIN = {"source": {style: str(package) for style, package in STYLES.items()}, "licence": LICENCES}
"""Of the emoji, for a set's `set.json`."""
NAMED = {
    "animals": {
        "dog": "1f436", "cat": "1f431", "pig": "1f437", "frog": "1f438", "panda": "1f43c", "chick": "1f424",
    },
    "foods": {
        "pizza": "1f355", "burger": "1f354", "tomato": "1f345", "apple": "1f34e", "cake": "1f370", "bread": "1f35e",
    },
    "vehicles": {
        "car": "1f697", "bus": "1f68c", "truck": "1f69a", "train": "1f682", "tram": "1f68b", "taxi": "1f695",
    },
    "toys": {
        "football": "26bd", "guitar": "1f3b8", "drum": "1f941", "bear": "1f9f8", "die": "1f3b2", "trophy": "1f3c6",
    },
}  # fmt: skip
"""Kind of things -> name -> code point of its emoji, some that a small picture tells apart."""
SIDE = 64  # pixels of an object's longer side, before it is composed
_SHARES: dict[str, int | float] = {"test": 0.2, "val": 0.1}
_LEAST = 0.2  # of the square around an object that it must cover
_PEOPLE = {"200d", "fe0f", "2640", "2642", "27a1", "1f468", "1f469", "1f9d1"}
"""Code points that make one concept several emoji: joiners, genders, directions."""


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
        return scaled(tight(image.convert("RGBA")), SIDE)


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


def named_pictures(emoji: Sequence[Emoji], style: str) -> dict[str, Image.Image]:
    """Name -> picture of `NAMED` in one art style.

    Raises:
        DataError: If one is missing.
    """
    by_code = {one.code.split("-")[0]: one.pictures[style] for one in reversed(emoji)}
    names = {name: code for of in NAMED.values() for name, code in of.items()}
    missing = [name for name, code in names.items() if code not in by_code]
    if missing:
        raise DataError(f"the emoji packages lack {', '.join(missing)}", "they are other versions than the pinned ones")
    return {name: tight(by_code[code]) for name, code in names.items()}


def fetch_styles(scratch: Path) -> dict[str, Path]:
    """Style -> its package's file, fetched into a folder.

    Raises:
        LmgraftError: If one cannot be fetched.
    """
    return {style: fetch_package(package, scratch) for style, package in STYLES.items()}


def fetch_named(name: str) -> dict[str, dict[str, Image.Image]]:
    """Art style -> name -> picture of `NAMED`; the packages are fetched and not kept.

    Args:
        name: Of the set that they are for.

    Raises:
        LmgraftError: If a package cannot be fetched, or lacks one of them.
    """
    with scratch_dir(name) as scratch:
        emoji, _ = read_emoji(fetch_styles(scratch))
    return {style: named_pictures(emoji, style) for style in STYLES}


def on_white(picture: Image.Image, side: int) -> Image.Image:
    """A picture with alpha in the middle of a white square of so many pixels."""
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2), picture)
    return canvas
