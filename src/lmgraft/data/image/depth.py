"""What a data set's deep images need before training: a range, and augmentation that can take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lmgraft.data.image.pipeline import Pipeline
from lmgraft.data.image.reading import Pixels, Range, Reading, deep_pixels
from lmgraft.data.image.tables import UNREADABLE, ImageTable, decode
from lmgraft.data.image.transforms import Preprocess, kept_generators, seed_generators
from lmgraft.errors import DataError, first_line

_IMAGES, _PIXELS = 256, 4096
"""From how many images, spread evenly, and how many pixels of each, percentiles are taken."""
PERCENTILES = (0.1, 99.9)


def _spread(index: npt.NDArray[np.int64], count: int) -> list[int]:
    """So many of the positions, the first and the last among them."""
    return [int(position) for position in index[np.unique(np.linspace(0, len(index) - 1, count).astype(np.int64))]]


def _deep(table: ImageTable, positions: list[int], every: bool) -> Iterator[npt.NDArray[Any]]:
    for position in positions:
        try:
            with table.files.open(position) as image:
                pixels = image if isinstance(image, Pixels) else deep_pixels(image, every)
        except UNREADABLE:
            continue  # named where it is to be shown
        if pixels is not None:
            yield pixels.values.reshape(-1)


def percentile_limits(table: ImageTable, index: npt.NDArray[np.int64], reading: Reading) -> Range:
    """The 0.1 and 99.9 percentiles of the deep images among these; "type" where none is deep.

    Args:
        index: The training images.

    Raises:
        DataError: If all their values are equal.
    """
    values = [
        pixels[:: max(1, len(pixels) // _PIXELS)]
        for pixels in _deep(table, _spread(index, _IMAGES), reading.mode is None)
    ]
    if not values:
        return "type"
    low, high = (float(value) for value in np.percentile(np.concatenate(values).astype(np.float64), PERCENTILES))
    if not low < high:
        raise DataError(
            f"{table.where}: the percentiles of all images are {low:g} and {high:g}", "give data.range as [low, high]"
        )
    return low, high


def try_deep(table: ImageTable, index: npt.NDArray[np.int64], preprocess: Preprocess, transform: Pipeline) -> None:
    """Put an image through the training transform, if it is deep: not every augmentation can take such.

    Raises:
        DataError: If it cannot.
    """
    position = int(index[0])
    try:
        image = decode(table.files, position, preprocess.reader)
    except UNREADABLE:
        return
    if not isinstance(image, Tensor):
        return
    steps = [type(step).__name__ for step in transform.before if hasattr(step, "ops") or hasattr(step, "policy")]
    reason = f"{steps[0]} (data.augment.auto_augment) takes 8 bits a channel" if steps else ""
    try:
        with kept_generators():
            seed_generators(np.zeros(3, np.uint64))
            transform(image)
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = reason or first_line(error)
    if reason:
        raise DataError(
            f"data.augment cannot change {table.place(position)}, {len(image)} channels of more than 8 bits: {reason}",
            "leave auto_augment out and interpolate bilinear or bicubic, or give data.depth=8, which rounds them to 8 "
            "bits behind data.range",
        )
