"""A toy ImageNet on disk: the real folder layouts, 1000 classes, tiny drawn images.

It shows that recipes and suites run end to end; accuracy on it says nothing about photographs.

<root>/imagenet/{train,val}/<wnid>/*.JPEG
<root>/imagenet-c/<corruption>/<1..5>/<wnid>/*.JPEG
<root>/imagenet-a/<wnid>/*.JPEG       200 classes
<root>/imagenet-r/<wnid>/*.JPEG       200 classes
<root>/imagenet-sketch/<wnid>/*.JPEG
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from lmgraft import records
from lmgraft.data.files import prepared_place
from lmgraft.data.image.corruptions import CORRUPTIONS
from lmgraft.data.image.image_files import ImageFiles
from lmgraft.data.image.imagenet_sets import subset, wnids

_DONE = "complete.json"
Suite = Literal["c", "a", "r", "sketch"]
SUITES: tuple[Suite, ...] = ("c", "a", "r", "sketch")


def write_toy_imagenet(
    root: Path, *, train: int = 2, size: int = 64, suites: Collection[Suite] = SUITES, seed: int = 0
) -> Path:
    """Write the tree, unless a whole one of these settings is there.

    Args:
        root: A folder for it.
        train: Training images a class; validation has one.
        size: Pixels a side.
        suites: Which robustness sets to write beside it.
        seed: Of the noise in the images.
    """
    settings = {"train": train, "size": size, "seed": seed}
    names = wnids()
    rng = np.random.default_rng(seed)
    if not _is_done(root / "imagenet", settings):
        for split, count in (("train", train), ("val", 1)):
            for label, wnid in enumerate(names):
                for number in range(count):
                    name = f"ILSVRC2012_val_{label + 1:08d}" if split == "val" else f"{wnid}_{number}"
                    _save(root / "imagenet" / split / wnid / f"{name}.JPEG", draw(label, size, rng))
        records.write_json(root / "imagenet" / _DONE, settings)
    for suite in suites:
        folder = root / f"imagenet-{suite}"
        if not _is_done(folder, settings):
            _write_suite(folder, suite, size, np.random.default_rng(seed))
            records.write_json(folder / _DONE, settings)
    return root


def _is_done(folder: Path, settings: dict[str, int]) -> bool:
    return (folder / _DONE).exists() and records.read_json(folder / _DONE) == settings


def draw(label: int, size: int, rng: np.random.Generator, noise: float = 12.0) -> npt.NDArray[np.uint8]:
    """(size, size, 3): a coloured bar in a coloured field; hues and place are the class."""
    field, bar, place = label % 10, label // 10 % 10, label // 100
    image = np.empty((size, size, 3))
    image[:] = 255 * np.array(colorsys.hsv_to_rgb(field / 10, 0.7, 0.55))
    start = round(size * (0.05 + 0.08 * place))
    image[start : start + max(2, size // 6)] = 255 * np.array(colorsys.hsv_to_rgb(bar / 10, 0.9, 0.95))
    return (image + rng.normal(0, noise, image.shape)).clip(0, 255).astype(np.uint8)


def _write_suite(folder: Path, suite: Suite, size: int, rng: np.random.Generator) -> None:
    labels = {wnid: label for label, wnid in enumerate(wnids())}
    if suite == "sketch":
        for wnid, label in labels.items():
            grey = draw(label, size, rng).mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
            _save(folder / wnid / "sketch_0.JPEG", grey)
    elif suite == "c":
        _write_corrupted(folder, labels, rng)
    else:
        for wnid in subset(suite):
            _save(folder / wnid / "0.JPEG", draw(labels[wnid], size, rng, noise=40.0))


def _write_corrupted(folder: Path, labels: Mapping[str, int], rng: np.random.Generator) -> None:
    original, *others = CORRUPTIONS
    for severity in range(1, 6):
        for wnid, label in labels.items():
            first = folder / original / str(severity) / wnid / "0.JPEG"
            _save(first, draw(label, 224, rng, noise=25.0 * severity))  # -C's files are of 224 pixels
            for corruption in others:  # the same noise under every name: a layout, not a corruption
                twin = folder / corruption / str(severity) / wnid / "0.JPEG"
                twin.parent.mkdir(parents=True, exist_ok=True)
                twin.unlink(missing_ok=True)
                os.link(first, twin)


def _save(file: Path, image: npt.NDArray[np.uint8]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file, "JPEG", quality=80)


def prepare(out: Path | None) -> Path:
    """Write the tree with all robustness sets beside it."""
    return write_toy_imagenet(prepared_place("toy-imagenet") if out is None else out)


class ToyImageNet(ImageFiles):
    """The toy tree, written into the cache when it is first used: for `debug` recipes.

    Args:
        root: Where the tree is or shall be; None is lmgraft's cache.
        options: See `ImageFiles`.
    """

    name = "toy_imagenet"

    def __init__(self, root: str | None = None, **options: Any) -> None:
        self.tree = prepared_place("toy-imagenet") if root is None else Path(root).expanduser()
        super().__init__(root=str(self.tree / "imagenet"), **options)

    def prepare_data(self) -> None:
        write_toy_imagenet(self.tree, suites=())
        super().prepare_data()
