"""Image data sets that fit into memory, augmented a batch at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lmgraft.data.base import SplitName, at_least_one
from lmgraft.data.draws import permutation, uniforms
from lmgraft.data.image.images import ImageData
from lmgraft.data.labelled import LabelledBatch, LabelledSet
from lmgraft.data.loader import Draw
from lmgraft.errors import DataError

_SPLIT_SEED = 0  # the split belongs to the data set, not to a run: all runs hold out the same images


class ImageArray(LabelledSet):
    """Images that fit into memory, augmented a batch at a time.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        indices: (N,) position of each image in its source file.
        mean, std: Channel statistics in [0, 1].
        seed: Seed of the augmentation.
        pad: Random shift of up to this many pixels, filled with black; 0 for none.
        flip: Whether to mirror half of the images.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        pad: int = 0,
        flip: bool = False,
    ) -> None:
        self.images, self.labels, self.indices = images, labels, indices
        self.mean, self.std = mean, std
        self.seed, self.pad, self.flip = seed, pad, flip

    def __getitems__(self, draws: list[Draw]) -> LabelledBatch:
        index = torch.tensor([d.sample for d in draws])
        images = self.images[index]
        sources = self.indices[index]
        if self.pad or self.flip:
            # Keyed by the source index, so that a subset sees the draws of the whole.
            epochs = np.array([d.epoch for d in draws])
            drawn = torch.from_numpy(uniforms(self.seed, epochs, sources.numpy(), 3))
            images = shift_and_flip(images, drawn, self.pad, self.flip)
        return self.labelled(normalised(images, self.mean, self.std), index)


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, C, H, W) uint8 -> float; mean and std are of channels in [0, 1]."""
    return (images.float() / 255 - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)


def shift_and_flip(images: Tensor, drawn: Tensor, pad: int, flip: bool) -> Tensor:
    """Shift by up to `pad` pixels each way and mirror, by `drawn` (B, 3) uniform numbers."""
    batch, _, height, width = images.shape
    shift = (drawn[:, :2] * (2 * pad + 1)).long()
    rows = shift[:, :1] + torch.arange(height)
    columns = shift[:, 1:] + torch.arange(width)
    mirrored = (drawn[:, 2:] < 0.5) if flip else torch.zeros(batch, 1, dtype=torch.bool)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (pad, pad, pad, pad))
    which = torch.arange(batch)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


class RawArrays:
    """The images of an `ImageArray` as PIL images."""

    def __init__(self, array: ImageArray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = self.array.images[index].permute(1, 2, 0).numpy()
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), int(self.array.labels[index])


class ImageArrays(ImageData):
    """Images in memory: class_path names the data set, a subclass of this.

    Args:
        batch_size: Training images a step (and a process).
        eval_batch_size: Images a step in validation and test.
        train_size: Use only so many training images; all by default.
        val_size: Training images held out to choose the best epoch by.
        test_size: Use only the first so many test images; all by default.
        pad: Random shift of training images in pixels.
        flip: Whether to mirror half of the training images.
        num_workers: Loader processes.
    """

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        train_size: int | None = None,
        val_size: int = 5000,
        test_size: int | None = None,
        pad: int = 2,
        flip: bool = True,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers)
        at_least_one(val_size=val_size)
        self.train_size, self.val_size, self.test_size = train_size, val_size, test_size
        self.pad, self.flip = pad, flip

    @abstractmethod
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """All images (N, C, H, W) uint8 and labels (N,) of one half; fetch them if need be."""

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        images, labels = self.load(train=True)
        left = len(images) - self.val_size
        train_size = left if self.train_size is None else self.train_size
        if not 1 <= train_size <= left:
            raise DataError(
                f"data.train_size={self.train_size} with data.val_size={self.val_size}: {self.name} has "
                f"{len(images)} training images",
                f"at most {left} remain for training" if left > 0 else "make val_size smaller",
            )
        self.fill_a_batch(train_size)
        order = torch.from_numpy(permutation(_SPLIT_SEED, 0, len(images)))
        chosen = {"val": order[left:], "train": order[:train_size]}
        for split, index in chosen.items():
            self._sets[split] = self._array(images[index], labels[index], index, augment=split == "train")
        images, labels = self.load(train=False)
        size = len(images) if self.test_size is None else min(self.test_size, len(images))
        self._sets["test"] = self._array(images[:size], labels[:size], torch.arange(size), augment=False)

    def _array(self, images: Tensor, labels: Tensor, index: Tensor, augment: bool) -> ImageArray:
        pad, flip = (self.pad, self.flip) if augment else (0, False)
        return ImageArray(images, labels, index, mean=self.mean, std=self.std, seed=self.seed, pad=pad, flip=flip)

    def still(self, name: SplitName) -> ImageArray:
        images = self._sets[name]
        assert isinstance(images, ImageArray)
        return ImageArray(images.images, images.labels, images.indices, mean=self.mean, std=self.std)

    def transform_record(self) -> dict[str, Any]:
        preprocess = {"mean": list(self.mean), "std": list(self.std), "img_size": list(self.img_size)}
        return {"preprocess": preprocess, "pad": self.pad, "flip": self.flip}

    def raw_test(self) -> RawArrays:
        test = self._sets["test"]
        assert isinstance(test, ImageArray)
        return RawArrays(test)

    def prepare(self, image: Image.Image) -> Tensor:
        """(C, H, W) float, the image resized if it is not of the data set's size."""
        height, width = self.img_size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image.convert("L" if self.in_chans == 1 else "RGB")))
        images = pixels.reshape(1, height, width, self.in_chans).permute(0, 3, 1, 2)
        return normalised(images, self.mean, self.std)[0]
