"""From frames to clips as the model takes them: one draw for all frames in training, several views in tests."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from lmgraft.data.image.transforms import allow_zero_bits, kept_generators, seed_generators
from lmgraft.errors import DataError

_FILTERS = {"bilinear": TF.InterpolationMode.BILINEAR, "bicubic": TF.InterpolationMode.BICUBIC}
_PILS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class ClipAugment:
    """Random changes of training clips, each drawn once for all frames of a clip.

    The defaults are mild. VideoMAE and the paper use `scale: [0.08, 1], auto_augment: rand-m7-n4-mstd0.5-inc1,
    re_prob: 0.25, copies: 2`; on Something-Something no mirror image, on Kinetics and UCF101 `hflip: 0.5`.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    """Share of the frame's area that the random crop keeps."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width to height of the random crop."""
    hflip: float = 0.0
    """Probability of a mirror image; 0 where left and right matter, as in Something-Something."""
    auto_augment: str | None = None
    """RandAugment in timm's spelling, such as rand-m7-n4-mstd0.5-inc1."""
    re_prob: float = 0.0
    """Probability of random erasing, of the same place in all frames."""
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    """What is put into the hole: the mean colour, a random colour, random pixels."""
    re_count: int = 1
    """Most holes a clip."""
    copies: int = 1
    """How many clips are made of the same frames in one step, each with changes of its own (VideoMAE's num_sample)."""


@dataclass(frozen=True)
class ClipSize:
    """What every clip is like."""

    frames: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Literal["bilinear", "bicubic"]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a clip: (C, T, H, W)."""
        return (3, self.frames, self.height, self.width)


class TrainTransform:
    """Colours and shapes (RandAugment), a random crop, a mirror image, normalisation, erasing.

    Raises:
        DataError: If timm does not understand `auto_augment`.
    """

    def __init__(self, size: ClipSize, augment: ClipAugment) -> None:
        self.size, self.augment = size, augment
        self._random_augment: Any = None
        if augment.auto_augment is not None:
            self._random_augment = _random_augment(augment.auto_augment, size)
        self._erase: Any = None
        if augment.re_prob:
            self._erase = RandomErasing(
                augment.re_prob, mode=augment.re_mode, max_count=augment.re_count, num_splits=0, device="cpu"
            )

    def __call__(self, frames: Sequence[Image.Image], words: npt.NDArray[np.uint64], out: Tensor) -> None:
        """Write the changed clip to `out` (C, T, H, W).

        Args:
            words: (3,) what the draws are functions of.
        """
        size = (self.size.height, self.size.width)
        with kept_generators():
            if self._random_augment is not None:
                changed = []
                for frame in frames:
                    seed_generators(words)  # the same draws for each frame
                    changed.append(self._random_augment(frame))
                frames = changed
            seed_generators(words[::-1])
            box = RandomResizedCrop.get_params(frames[0], list(self.augment.scale), list(self.augment.ratio))
            mirrored = random.random() < self.augment.hflip
            for place, frame in enumerate(frames):
                crop: Any = TF.resized_crop(frame, *box, list(size), _FILTERS[self.size.interpolation])
                out[:, place] = _pixels(TF.hflip(crop) if mirrored else crop)
            _normalise(out, self.size)
            if self._erase is not None:
                self._erase(out.view(-1, *size))  # frames as channels: one hole for all


class ViewTransform:
    """The shorter side to the size of the model, and a part of the longer one.

    Args:
        size: Of the clip.
        part: Where the crop lies along the longer side: 0 its beginning, 0.5 its middle, 1 its end.
    """

    def __init__(self, size: ClipSize, part: float = 0.5) -> None:
        self.size, self.part = size, part

    def __call__(self, frames: Sequence[Image.Image], out: Tensor) -> None:
        """Write the clip to `out` (C, T, H, W)."""
        for place, frame in enumerate(frames):
            out[:, place] = _pixels(self.crop(frame, _PILS[self.size.interpolation]))
        _normalise(out, self.size)

    def crop(self, frame: Image.Image, how: Image.Resampling) -> Image.Image:
        """A frame or a mask as the clip shows it."""
        height, width = self.size.height, self.size.width
        scale = max(height / frame.height, width / frame.width)
        wide = (max(width, math.floor(frame.width * scale + 0.5)), max(height, math.floor(frame.height * scale + 0.5)))
        if frame.size != wide:
            frame = frame.resize(wide, how)
        left, top = (math.floor((a - b) * self.part + 0.5) for a, b in zip(wide, (width, height), strict=True))
        return frame.crop((left, top, left + width, top + height))


def _random_augment(text: str, size: ClipSize) -> Any:
    colour = tuple(min(255, round(255 * value)) for value in size.mean)
    options = {"translate_const": int(min(size.height, size.width) * 0.45), "img_mean": colour}
    try:
        augment = rand_augment_transform(text, options | {"interpolation": Image.Resampling.BICUBIC})
    except (AssertionError, ValueError, KeyError) as error:
        raise DataError(
            f"data.augment.auto_augment={text}: timm cannot build it ({error})", "such as rand-m7-n4-mstd0.5-inc1"
        ) from None
    allow_zero_bits(_Steps([augment]))
    return augment


@dataclass
class _Steps:
    transforms: list[Any]


def _pixels(frame: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1)


def _normalise(out: Tensor, size: ClipSize) -> None:
    """Bytes, as float, to numbers of mean 0 and deviation 1."""
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (size.mean, size.std))
    out.div_(255).sub_(mean).div_(std)
