"""Training and evaluation transforms: timm's, with the draws of a sample fixed by its key."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from lmgraft.data.image.pipeline import Pipeline
from lmgraft.data.image.reading import Range, Reading, Style
from lmgraft.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of training images, as `timm.data.create_transform` makes them.

    The defaults are mild and suit a small folder of one's own. DeiT (arXiv 2012.12877) and the paper use
    `scale: [0.08, 1], auto_augment: rand-m9-mstd0.5-inc1, color_jitter: 0.4, re_prob: 0.25, re_mode: pixel`, and
    `repeats: 3` beside them.
    """

    scale: tuple[float, float] = (0.35, 1.0)
    """Share of the image's area that the random crop keeps."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width to height of the random crop."""
    hflip: float = 0.5
    """Probability of a mirror image; 0 where left and right matter, as with text."""
    vflip: float = 0.0
    """Probability of turning upside down."""
    auto_augment: str | None = None
    """RandAugment or AutoAugment in timm's spelling, such as rand-m9-mstd0.5-inc1."""
    color_jitter: float | None = None
    """Random brightness, contrast and saturation; timm leaves it out where auto_augment is on."""
    re_prob: float = 0.0
    """Probability of random erasing."""
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    """What is put into the hole: the mean colour, a random colour, random pixels."""
    re_count: int = 1
    """Most holes an image."""
    interpolation: Literal["bilinear", "bicubic", "lanczos", "random"] | None = None
    """Of the random crop; by default that of evaluation."""


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What happens to every image: how it is read, size, channels and normalisation."""

    img_size: tuple[int, int]
    in_chans: int
    interpolation: str
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reading: Style = "timm"
    range: Range = "type"
    depth: Literal["full", 8] = "full"

    @property
    def reader(self) -> Reading:
        """How files become numbers."""
        limits = None if isinstance(self.range, str) else (float(self.range[0]), float(self.range[1]))
        return Reading(self.in_chans, self.reading, limits, self.depth == 8)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: (C, H, W)."""
        return (self.in_chans, *self.img_size)

    def record(self) -> dict[str, Any]:
        """As plain data; how files are read only where it is not as timm reads them, as in earlier records."""
        plain = asdict(self)
        if self.reading == "timm":
            plain = {key: value for key, value in plain.items() if key not in ("reading", "range", "depth")}
        return plain


def statistics(in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of ImageNet's channels; their averages where there are not three."""
    if in_chans == 3:
        return tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD)
    mean, std = (float(np.mean(values)) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (mean,) * in_chans, (std,) * in_chans


def evaluation_transform(preprocess: Preprocess) -> Pipeline:
    """Resize by 1 / crop_pct, crop the centre, normalise."""
    transform = create_transform(
        preprocess.img_size,
        interpolation=preprocess.interpolation,
        crop_pct=preprocess.crop_pct,
        mean=preprocess.mean,
        std=preprocess.std,
    )
    return Pipeline(transform, preprocess.shape)


def training_transform(preprocess: Preprocess, augment: Augment) -> Pipeline:
    """Random crop, mirror, colours, normalise, erase.

    Raises:
        DataError: If timm does not understand `auto_augment`, or a number is out of its range.
    """
    try:
        transform = create_transform(
            preprocess.img_size,
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            vflip=augment.vflip,
            color_jitter=augment.color_jitter,
            auto_augment=augment.auto_augment,
            interpolation=augment.interpolation or preprocess.interpolation,
            mean=preprocess.mean,
            std=preprocess.std,
            re_prob=augment.re_prob,
            re_mode=augment.re_mode,
            re_count=augment.re_count,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise DataError(
            f"data.augment: timm cannot build {augment} ({error})", "see timm.data.create_transform"
        ) from None
    allow_zero_bits(transform)
    return Pipeline(transform, preprocess.shape)


def allow_zero_bits(transform: Any) -> None:
    """Let Posterize keep no bits, which is a black image, as it was when these recipes were made.

    RandAugment at magnitude 9 with mstd0.5 asks for it now and then. Pillow raises since 13.0.
    """
    for step in transform.transforms:
        for operation in getattr(step, "ops", None) or [op for policy in getattr(step, "policy", ()) for op in policy]:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    if bits < 1:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = auto_augment.posterize(image, bits, **options)
    return posterized


@contextmanager
def kept_generators() -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch (CPU) as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def seed_generators(words: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
    """Seed the three from three words: timm and torchvision draw from all of them."""
    a, b, c = (int(word) for word in words)
    random.seed(a)
    np.random.seed([b & 0xFFFFFFFF, b >> 32])
    torch.default_generator.manual_seed(c & 0x7FFFFFFFFFFFFFFF)  # not torch.manual_seed, which asks every device
