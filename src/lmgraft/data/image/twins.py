"""Images that show the same: in every pixel, or nearly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lmgraft.data.image.tables import Found

_SIDE = 16
SKETCH = _SIDE * _SIDE // 8
"""Bytes of a sketch."""
_STEP = 2  # of 255: a smaller rise of brightness is noise, and no bit of the sketch
_FEWEST = 24  # bits without which a sketch shows nothing that could be compared
_NEAR = 12  # of its 256 bits that may differ; sketches of unrelated images differ in about 80


@dataclass(frozen=True)
class Twins:
    """Images that show the same."""

    names: tuple[str, ...]
    """`split: name` of each."""
    labels: frozenset[str]
    splits: frozenset[str]


def sketch(image: Image.Image | Tensor) -> bytes:
    """Where an image becomes brighter from left to right, on 16 x 16 points: a dHash, which survives scaling and JPEG.

    Args:
        image: PIL's, or (C, H, W) float in [0, 1].
    """
    if isinstance(image, Tensor):
        grey = F.interpolate(image.mean(0)[None, None], (_SIDE, _SIDE + 1), mode="area")[0, 0].numpy() * 255
    else:
        grey = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), np.float32)
    bits = np.diff(grey) > _STEP
    return np.packbits(bits).tobytes() if _FEWEST <= bits.sum() <= bits.size - _FEWEST else bytes(SKETCH)


def twins(found: Mapping[str, Found], digests: Mapping[str, npt.NDArray[np.uint64]]) -> list[Twins]:
    """Groups of images that are equal pixel by pixel, within and across splits.

    Args:
        digests: (N,) of each split's images; 0 where one cannot be read.
    """
    places = [(split, index) for split, part in digests.items() for index in range(len(part))]
    values = np.concatenate(list(digests.values()))
    order = np.argsort(values, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(values[order])) + 1)
    return [_group(found, (places[i] for i in group)) for group in groups if len(group) > 1 and values[group[0]]]


def near_twins(
    found: Mapping[str, Found],
    sketches: Mapping[str, npt.NDArray[np.uint8]],
    digests: Mapping[str, npt.NDArray[np.uint64]],
) -> list[Twins]:
    """Pairs of images that show nearly the same and are not equal in every pixel.

    Args:
        sketches: (N, 32) of each split's images.
        digests: As in `twins`.
    """
    places = [(split, index) for split, part in sketches.items() for index in range(len(part))]
    bits, values = np.concatenate(list(sketches.values())), np.concatenate(list(digests.values()))
    return [
        _group(found, (places[one], places[other]))
        for one, other in sorted(set(_candidates(bits)))
        if values[one] != values[other] and np.unpackbits(bits[one] ^ bits[other]).sum() <= _NEAR
    ]


def _candidates(bits: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Pairs that agree in 16 neighbouring bits: with at most 12 of 256 different there are always such."""
    shown = np.flatnonzero(bits.any(1))
    for column in bits[shown].view(np.uint16).T:
        order = np.argsort(column, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(column[order])) + 1):
            if 1 < len(group) <= _CROWD:
                members = sorted(int(shown[i]) for i in group)
                yield from ((one, other) for k, one in enumerate(members) for other in members[k + 1 :])


_CROWD = 200  # images that agree in 16 bits above which these say nothing, such as a plain border


def _group(found: Mapping[str, Found], rows: Iterable[tuple[str, int]]) -> Twins:
    rows = list(rows)
    return Twins(
        tuple(f"{split}: {found[split].names[index]}" for split, index in rows),
        frozenset(found[split].labels[index] for split, index in rows),
        frozenset(split for split, _ in rows),
    )
