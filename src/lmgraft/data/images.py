"""Image classification data in memory, and the DataModule that all image data sets share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from lmgraft.data.draws import permutation, uniforms
from lmgraft.data.loader import Draw, EpochLoader, EpochSampler
from lmgraft.errors import DataError

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (B, C, H, W) float, labels (B,), indices (B,) in the source files."""

_SPLIT_SEED = 0  # the split belongs to the data set, not to a run: all runs hold out the same images


class ImageArray(Dataset[Batch]):
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
        self.mean = torch.tensor(mean).view(1, -1, 1, 1)
        self.std = torch.tensor(std).view(1, -1, 1, 1)
        self.seed, self.pad, self.flip = seed, pad, flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, sample: int) -> Batch:
        return self.batch([sample])

    def batch(self, samples: Sequence[int]) -> Batch:
        """The batch of these samples, as epoch 0 shows them."""
        return self.__getitems__([Draw(0, int(sample)) for sample in samples])

    def __getitems__(self, draws: list[Draw]) -> Batch:
        epochs, index = np.array([d.epoch for d in draws]), torch.tensor([d.sample for d in draws])
        images = self.images[index]
        sources = self.indices[index]
        if self.pad or self.flip:
            # Keyed by the source index, so that a subset sees the draws of the whole.
            drawn = torch.from_numpy(uniforms(self.seed, epochs, sources.numpy(), 3))
            images = shift_and_flip(images, drawn, self.pad, self.flip)
        return (images.float() / 255 - self.mean) / self.std, self.labels[index], sources


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


class ImageData(LightningDataModule, ABC):
    """The images: class_path names the data set, a subclass of this.

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

    name: str
    class_names: tuple[str, ...]
    in_chans: int
    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

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
        super().__init__()
        for key, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "val_size": val_size}.items():
            if value < 1:
                raise DataError(f"data.{key} must be at least 1, got {value}")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.train_size, self.val_size, self.test_size = train_size, val_size, test_size
        self.pad, self.flip, self.num_workers = pad, flip, num_workers
        self.seed = 0
        """Seed of order and augmentation; the run sets it."""
        self._sets: dict[str, ImageArray] = {}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @abstractmethod
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """All images (N, C, H, W) uint8 and labels (N,) of one half; fetch them if need be."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data in a record."""

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
        if train_size < self.batch_size:
            raise DataError(
                f"data.batch_size={self.batch_size} is more than the {train_size} training images",
                "make it smaller: an incomplete batch is dropped",
            )
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

    def split(self, name: str) -> ImageArray:
        """The images of "train", "val" or "test", after `setup`."""
        return self._sets[name]

    def train_dataloader(self) -> EpochLoader:
        trainer = self.trainer
        assert trainer is not None, "the trainer asks for the loader"

        def progress() -> tuple[int, int]:
            return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready

        return self._loader("train", progress=progress)

    def val_dataloader(self) -> EpochLoader:
        return self._loader("val")

    def test_dataloader(self) -> EpochLoader:
        return self._loader("test")

    def _loader(self, split: str, **options: Any) -> EpochLoader:
        training = split == "train"
        trainer = self.trainer
        sampler = EpochSampler(
            len(self._sets[split]),
            self.batch_size if training else self.eval_batch_size,
            seed=self.seed,
            shuffle=training,
            drop_last=training,
            rank=trainer.global_rank if trainer is not None else 0,
            world=trainer.world_size if trainer is not None else 1,
        )
        return EpochLoader(self._sets[split], sampler, num_workers=self.num_workers, **options)
