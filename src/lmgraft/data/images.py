"""What all image classification data share: a DataModule, its splits and its loaders."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

from PIL import Image
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from lmgraft.data.loader import Draw, EpochLoader, EpochSampler, Fault, Reported
from lmgraft.errors import DataError

Batch = tuple[Tensor, Tensor, Tensor]
"""Images (B, C, H, W) float, labels (B,), indices (B,) in the source files."""

SplitName = Literal["train", "val", "test"]


class RawImages(Protocol):
    """The test images as they lie in their files, for the robustness suite and for looking at."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        """A PIL image in mode RGB or L, and its label."""


class ImageSet(Dataset[Batch], ABC):
    """The images of one split.

    Attributes:
        labels: (N,) int64.
        indices: (N,) int64, position of each image in its source.
    """

    labels: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample: int) -> Batch:
        return self.batch([sample])

    def batch(self, samples: Sequence[int]) -> Batch:
        """The batch of these samples, as epoch 0 shows them."""
        images, labels, sources, *_ = self.__getitems__([Draw(0, int(sample)) for sample in samples])
        return images, labels, sources

    @abstractmethod
    def __getitems__(self, draws: list[Draw]) -> Batch | Reported:
        """The batch of these draws; with the files that could not be read, where there can be such."""


class ImageData(LightningDataModule, ABC):
    """The images: class_path names the data set, a subclass of this.

    Args:
        batch_size: Training images a step (and a process).
        eval_batch_size: Images a step in validation and test.
        num_workers: Loader processes.
    """

    name: str
    class_names: tuple[str, ...]
    in_chans: int
    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    selection: Literal["val", "test"] = "val"
    """Which images choose the best epoch: held-out ones, or the test images, as the paper does."""
    repeats: int = 1
    """How often an image comes in one epoch, each time augmented anew."""
    max_corrupt: int = 0
    """Unreadable files, in training and validation, above which a run stops."""
    max_corrupt_test: int = 0
    """The same for the test images."""

    def __init__(self, *, batch_size: int = 128, eval_batch_size: int = 500, num_workers: int = 0) -> None:
        super().__init__()
        at_least_one(batch_size=batch_size, eval_batch_size=eval_batch_size)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers = num_workers
        self.seed = 0
        """Seed of order and augmentation; the run sets it."""
        self._sets: dict[str, ImageSet] = {}
        self._met: dict[str, dict[str, str]] = {"train": {}, "test": {}}

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def faults(self) -> list[Fault]:
        """Files that this process could not read so far, each once; a resumed run remembers them."""
        return [Fault(*fault) for met in self._met.values() for fault in met.items()]

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the unreadable files, if there are any."""
        return {"unreadable": {group: dict(met) for group, met in self._met.items()}} if self.faults else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group, met in state_dict["unreadable"].items():
            self._met[group].update(met)

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data in a record."""

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Check the data and make the splits; once is enough."""

    @abstractmethod
    def raw_test(self) -> RawImages:
        """The test images, in the order of `split("test")`, before any transform."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """The evaluation transform with normalisation: (C, H, W) float."""

    @abstractmethod
    def still(self, name: SplitName) -> ImageSet:
        """The images of a split as evaluation sees them, also those of "train".

        In "train" the next readable image stands for one that cannot be read, as in training.
        """

    @abstractmethod
    def transform_record(self) -> dict[str, Any]:
        """What identifies the transforms, as plain data; not the seed of their draws.

        "preprocess" is of evaluation's, the rest of training's.
        """

    def split(self, name: SplitName) -> ImageSet:
        """The images of "train", "val" or "test", after `setup`."""
        return self._sets[name]

    def replace(self, name: SplitName, images: ImageSet) -> None:
        """Let loaders read a split from elsewhere: the same samples in the same order."""
        assert len(images) == len(self._sets[name])
        self._sets[name] = images

    def train_dataloader(self) -> EpochLoader:
        trainer = self.trainer
        assert trainer is not None, "the trainer asks for the loader"

        def progress() -> tuple[int, int]:
            return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready

        return self.loader("train", progress=progress)

    def val_dataloader(self) -> EpochLoader:
        return self.loader("val")

    def test_dataloader(self) -> EpochLoader:
        return self.loader("test")

    def loader(self, split: SplitName, **options: Any) -> EpochLoader:
        """The loader of a split: this process's share of it, in a fixed order unless it is "train".

        Args:
            options: Of `EpochLoader`, such as `progress`.
        """
        training, trainer = split == "train", self.trainer
        sampler = EpochSampler(
            len(self._sets[split]),
            self.batch_size if training else self.eval_batch_size,
            seed=self.seed,
            shuffle=training,
            drop_last=training,
            rank=trainer.global_rank if trainer is not None else 0,
            world=trainer.world_size if trainer is not None else 1,
            repeats=self.repeats if training else 1,
        )
        return EpochLoader(
            self._sets[split],
            sampler,
            report=lambda faults: self.report(split, faults),
            num_workers=self.num_workers,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
            **options,
        )

    def report(self, split: SplitName, faults: Iterable[Fault]) -> None:
        """Note unreadable files that a loader of this split met, each once.

        Raises:
            DataError: If there are now more than `max_corrupt`, or of the test images `max_corrupt_test`.
        """
        test = split == "test" or (split == "val" and self.selection == "test")
        limit, key = (self.max_corrupt_test, "max_corrupt_test") if test else (self.max_corrupt, "max_corrupt")
        met = self._met["test" if test else "train"]
        for fault in faults:
            if fault.file in met:
                continue
            met[fault.file] = fault.reason
            said = f"{fault.file} is not readable as an image ({fault.reason})"
            if len(met) > limit:
                raise DataError(
                    f"{said}; with it {len(met)} {'file is' if len(met) == 1 else 'files are'} unreadable, and "
                    f"data.{key} is {limit}",
                    f"lmgraft check-data finds all such files; mend or remove them, or raise data.{key}",
                )
            instead = "the next readable image is shown instead" if split == "train" else "a blank image is shown"
            warnings.warn(f"{said}; {instead} ({len(met)} of at most {limit})", CorruptImageWarning, stacklevel=2)


class CorruptImageWarning(UserWarning):
    """A file could not be read as an image and was passed over, under the stated limit."""


def at_least_one(**values: int) -> None:
    """Refuse counts below one.

    Raises:
        DataError: If there is one; it names the key.
    """
    for key, value in values.items():
        if value < 1:
            raise DataError(f"data.{key} must be at least 1, got {value}")
