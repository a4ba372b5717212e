"""The fifteen corruptions of ImageNet-C in five severities, made on the fly on any image.

What a corruption draws is a function of (seed, corruption, severity, index of the image), so
that every model sees the same corrupted images, however they are batched and loaded.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from lmgraft.data.image import corruptions_kinds as kinds
from lmgraft.data.image.corruptions_filters import Pixels
from lmgraft.data.image.corruptions_frost import Picture
from lmgraft.errors import DataError
from lmgraft.registry import suggest

SIZE = 224
"""Pixels of the shorter side for which lengths among the parameters are meant."""
VERSION = 1
"""Goes up whenever a corrupted image changes, so that counts of other images are not kept."""
LARGEST = 256
"""Larger images are reduced to this shorter side first, as ImageNet-C's were before their crop to 224."""


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """What is done to an image, and how much at each severity."""

    apply: Callable[..., Pixels]
    parameters: tuple[Any, ...]
    """For severities 1 to 5, as published."""
    unit: Literal["image", "pixel"]
    """What the parameters refer to: lengths on the image as a whole, or single pixels. It decides how
    small images are enlarged, see `working_size`."""
    pictures: bool = False
    """Whether it needs pictures of frost."""


CORRUPTIONS = {
    "gaussian_noise": Corruption(apply=kinds.gaussian_noise, parameters=(0.08, 0.12, 0.18, 0.26, 0.38), unit="pixel"),
    "shot_noise": Corruption(apply=kinds.shot_noise, parameters=(60, 25, 12, 5, 3), unit="pixel"),
    "impulse_noise": Corruption(apply=kinds.impulse_noise, parameters=(0.03, 0.06, 0.09, 0.17, 0.27), unit="pixel"),
    "defocus_blur": Corruption(
        apply=kinds.defocus_blur, parameters=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)), unit="image"
    ),
    "glass_blur": Corruption(
        apply=kinds.glass_blur,
        parameters=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        unit="image",
    ),
    "motion_blur": Corruption(
        apply=kinds.motion_blur, parameters=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), unit="image"
    ),
    "zoom_blur": Corruption(
        apply=kinds.zoom_blur,
        parameters=((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        unit="image",
    ),
    "snow": Corruption(
        apply=kinds.snow,
        parameters=(
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        unit="image",
    ),
    "frost": Corruption(
        apply=kinds.frost,
        parameters=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        unit="image",
        pictures=True,
    ),
    "fog": Corruption(apply=kinds.fog, parameters=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), unit="image"),
    "brightness": Corruption(apply=kinds.brightness, parameters=(0.1, 0.2, 0.3, 0.4, 0.5), unit="pixel"),
    "contrast": Corruption(apply=kinds.contrast, parameters=(0.4, 0.3, 0.2, 0.1, 0.05), unit="pixel"),
    "elastic_transform": Corruption(
        apply=kinds.elastic_transform,
        # 244, not 224: so the published files were made.
        parameters=(
            (244 * 2, 244 * 0.7, 244 * 0.1),
            (244 * 2, 244 * 0.08, 244 * 0.2),
            (244 * 0.05, 244 * 0.01, 244 * 0.02),
            (244 * 0.07, 244 * 0.01, 244 * 0.02),
            (244 * 0.12, 244 * 0.01, 244 * 0.02),
        ),
        unit="image",
    ),
    "pixelate": Corruption(apply=kinds.pixelate, parameters=(0.6, 0.5, 0.4, 0.3, 0.25), unit="pixel"),
    "jpeg_compression": Corruption(apply=kinds.jpeg_compression, parameters=(25, 18, 15, 10, 7), unit="pixel"),
}
"""In the order in which the paper lists them."""
SEVERITIES = (1, 2, 3, 4, 5)


def find_corruption(name: str) -> Corruption:
    """A corruption by name.

    Raises:
        DataError: If there is none of that name.
    """
    if name not in CORRUPTIONS:
        raise DataError(f"there is no corruption {name!r}", suggest(name, CORRUPTIONS))
    return CORRUPTIONS[name]


def working_size(size: tuple[int, int], unit: Literal["image", "pixel"]) -> tuple[int, int]:
    """The size (width, height) at which an image of `size` is corrupted.

    Large ones get a shorter side of 256. Small ones get 224 where parameters are lengths on the
    image. Where they refer to single pixels, 224 would undo the corruption, since its noise is
    averaged away on the way back, and the own size would multiply it: they get the geometric mean
    of both, which comes near to what CIFAR-10-C's authors chose by hand for 32 pixels.
    """
    short = min(size)
    if short > LARGEST:
        wanted: float = LARGEST
    elif short < SIZE:
        wanted = SIZE if unit == "image" else (SIZE * short) ** 0.5
    else:
        return size
    return max(1, round(size[0] * wanted / short)), max(1, round(size[1] * wanted / short))


def corrupt(
    image: Image.Image,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    index: int = 0,
    frost: Sequence[Picture] = (),
) -> Image.Image:
    """The image with a corruption; a small one in its own size, a large one reduced to 256 pixels.

    Args:
        image: In mode L, which stays L, or any other, which becomes RGB.
        name: A key of `CORRUPTIONS`.
        severity: 1 to 5.
        seed, index: What is drawn is a function of these, of `name` and of `severity`.
        frost: Pictures (H, W, 3) for "frost", see `frost_pictures`.

    Raises:
        DataError: If name or severity are unknown, or "frost" has no pictures.
    """
    corruption = find_corruption(name)
    if severity not in SEVERITIES:
        raise DataError(f"severity {severity} of {name}", "severities are 1 to 5")
    if corruption.pictures and not frost:
        raise DataError("the corruption frost needs pictures", "hand in frost=frost_pictures()")
    image = image if image.mode == "L" else image.convert("RGB")
    size = working_size(image.size, corruption.unit)
    resized = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
    rng = np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode()), severity, index]))
    )
    further = {"pictures": frost} if corruption.pictures else {}
    changed = corruption.apply(kinds.to_pixels(resized), corruption.parameters[severity - 1], rng, **further)
    made = kinds.to_image(changed)
    small = min(image.size) < SIZE
    return made.resize(image.size, Image.Resampling.BICUBIC) if small and made.size != image.size else made
