"""What the data of every task share: splits, loaders, unreadable files, and what a task asks of them.

Knows no kind of item: a data set says what its items are, how a batch of them looks, and which belong together.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from pytorch_lightning import LightningDataModule
from torch import Tensor

from lmgraft.contracts import Batch
from lmgraft.data.check import Findings, ShowProgress, check_items
from lmgraft.data.files import say_once
from lmgraft.data.items import ItemSet, OtherItems
from lmgraft.data.loader import EpochLoader, EpochSampler, Fault
from lmgraft.errors import DataError

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class UnreadableItemWarning(UserWarning):
    """A file could not be read and was passed over, under the stated limit."""


class Data(LightningDataModule, ABC):
    """The data: class_path names the data set, a subclass of this.

    Args:
        batch_size: Training items a step (and a process).
        eval_batch_size: Items a step in validation and test.
        num_workers: Loader processes.
    """

    name: str
    things: ClassVar[str] = "items"
    """What its items are, in the plural: images, clips, scenes, questions."""
    endings: ClassVar[tuple[str, ...]] = ()
    """How files that `open` reads end, in small letters with their dots; none where it reads none."""
    beside: ClassVar[tuple[str, ...]] = ()
    """How files end that may be given along with an item's own, such as the map of a scene."""
    selection: Literal["val", "test", "last"] = "val"
    """What chooses the epoch: held-out items, the test items as the paper does, or nothing: the last epoch counts."""
    repeats: int = 1
    """How often an item comes in one epoch, each time with other random changes."""
    max_corrupt: int = 0
    """Unreadable files, in training and validation, above which a run stops."""
    max_corrupt_test: int = 0
    """Unreadable files among the test items above which a run stops."""
    says_remarks: bool = True
    """Whether remarks are written to the terminal at once, as whoever lists them at the end need not have."""
    before: ClassVar[Mapping[str, Any]] = {}
    """Keys younger than a run -> what they were without it, so that it is evaluated as it was trained."""
    many_sizes: ClassVar[bool] = False
    """Whether items differ in how much there is to compute of them, such as scenes of few agents and of many."""
    leaves_out: ClassVar[bool] = False
    """Whether what cannot be read is left out of its split from the start, rather than replaced when it is drawn."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions that read or change the items, whose versions a run records."""

    def __init__(self, *, batch_size: int = 128, eval_batch_size: int = 500, num_workers: int = 0) -> None:
        super().__init__()
        at_least_one(batch_size=batch_size, eval_batch_size=eval_batch_size)
        if num_workers < 0:
            raise DataError(f"data.num_workers={num_workers} must not be negative", "0 reads in the training process")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers = num_workers
        self.seed = 0
        """Seed of order and augmentation; the run sets it."""
        self.tested = 0
        """Batches of the test that are scored already: its loader begins behind them."""
        self._sets: dict[str, ItemSet] = {}
        self._unreadable: dict[str, dict[str, str]] = {"train": {}, "test": {}}
        self._remarks: dict[str, None] = {}

    def remark(self, sentence: str) -> None:
        """Say once what is odd with the data, or is left out of them, but stops nothing."""
        self._remarks[sentence] = None
        if self.says_remarks:
            say_once(f"note: {sentence}\n")

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was remarked so far; a run records it, and pages about runs repeat it."""
        return tuple(self._remarks)

    def fill_a_batch(self, size: int) -> None:
        """Refuse fewer training items than a batch has.

        Raises:
            DataError: If there are so few.
        """
        if size < self.batch_size:
            raise DataError(
                f"data.batch_size={self.batch_size} is more than the {size:,} training {self.things}",
                "make it smaller: an incomplete batch is dropped",
            )

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What identifies the data in a record, as plain data."""

    @abstractmethod
    def transform_record(self) -> dict[str, Any]:
        """What identifies the transforms, as plain data; not the seed of their draws.

        "preprocess" is evaluation's, the rest training's.
        """

    @abstractmethod
    def setup(self, stage: str | None = None) -> None:
        """Check the data and make the splits; once is enough."""

    @abstractmethod
    def still(self, name: SplitName) -> ItemSet:
        """The items of a split as evaluation sees them, also those of "train".

        In "train" the next readable item stands for one that cannot be read, as in training.
        """

    @abstractmethod
    def model_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the model that follow from the data, such as its number of classes."""

    @abstractmethod
    def example(self, size: int, seed: int = 0) -> Batch:
        """A batch of `size` random items of the right shapes and masks, made without reading any file."""

    def typical(self, size: int) -> Any:
        """A batch as large as training's are, for counting and timing: `example`, or where items are of many sizes and
        are set up, training items spread over all."""
        if not (self.many_sizes and self._sets.get("train")):
            return self.example(size)
        items = self.still("train")
        return items.batch([n * len(items) // size for n in range(size)])

    def categories(self) -> dict[str, tuple[str, ...]]:
        """Ways to divide the items: name -> names of the parts, which columns `by_NAME` number; none by default."""
        return {}

    def split_names(self) -> dict[str, str]:
        """Split -> what the source calls its items, where that says more than train, val and test; none by default."""
        return {}

    def check(self, workers: int, progress: ShowProgress, near: bool = False) -> Findings:
        """Look at all items before a training does; what `lmgraft check-data` prints.

        Args:
            workers: Processes that may be used; 0 uses this one.
            progress: Makes what is told of the progress, from the name of a split and its number of items.
            near: Also look for items that are nearly equal, where the kind of items allows it.
        """
        self.batch_size = 1  # none is made: what is too small for a batch is looked at all the same
        self.prepare_data()
        self.setup()
        splits = {name: self.still(name) for name in SPLITS if name in self._sets and not self._is_test_again(name)}
        findings = check_items(self.things, splits, progress)
        findings.remarks += self.remarks
        return findings

    def recall(self, record: Mapping[str, Any]) -> None:
        """Take from a run.json what would be looked up in files, which need not be here; nothing by default."""

    def as_trained(self, record: Mapping[str, Any]) -> None:
        """Take from a run.json what was measured in training files, before the run is evaluated; nothing by default."""

    def open(self, sources: Sequence[str]) -> ItemSet:
        """The items in these files, as evaluation sees them, for a model to predict; labels are not needed.

        Raises:
            DataError: If a file is missing or cannot be read, or such items cannot come from files of their own.
        """
        raise DataError(f"{type(self).__name__} cannot read {self.things} from files by themselves")

    def shown_to(self, data: Data) -> OtherItems:
        """These items for a model that was trained on other data, to be looked at with its own preprocessing.

        Args:
            data: The model's; its files need not be there.

        Raises:
            DataError: If they cannot be shown to it.
        """
        raise DataError(f"{type(self).__name__} cannot be shown to a model of other data", "images with masks can be")

    @property
    def faults(self) -> list[Fault]:
        """Files that this process could not read so far, each once; a resumed run remembers them."""
        return [Fault(*fault) for unreadable in self._unreadable.values() for fault in unreadable.items()]

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the unreadable files, if there are any."""
        return {"unreadable": {part: dict(files) for part, files in self._unreadable.items()}} if self.faults else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, files in state_dict["unreadable"].items():
            self._unreadable[part].update(files)

    def split(self, name: SplitName) -> ItemSet:
        """The items of "train", "val" or "test", after `setup`."""
        return self._sets[name]

    def replace(self, name: SplitName, items: ItemSet) -> None:
        """Let loaders read a split from elsewhere: the same samples in the same order."""
        assert len(items) == len(self._sets[name])
        self._sets[name] = items

    def train_dataloader(self) -> EpochLoader:
        trainer = self.trainer
        assert trainer is not None, "the trainer asks for the loader"

        def progress() -> tuple[int, int]:
            return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready

        return self.loader("train", progress=progress)

    def val_dataloader(self) -> EpochLoader:
        return self.loader("val")

    def test_dataloader(self) -> EpochLoader:
        return self.loader("test", progress=lambda: (0, self.tested))

    def loader(self, split: SplitName, **options: Any) -> EpochLoader:
        """The loader of a split: this process's share of it, in a fixed order unless it is "train".

        Args:
            options: Further ones of `EpochLoader`, such as `progress`.
        """
        training, trainer, items = split == "train", self.trainer, self._sets[split]
        sampler = EpochSampler(
            len(items),
            self.batch_size if training else self.eval_batch_size,
            seed=self.seed,
            shuffle=training,
            order=partial(items.order, self.seed),
            drop_last=training,
            rank=trainer.global_rank if trainer is not None else 0,
            world=trainer.world_size if trainer is not None else 1,
            repeats=self.repeats if training else 1,
        )
        return EpochLoader(
            items,
            sampler,
            report=lambda faults: self.report(split, faults),
            num_workers=self.num_workers,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
            **options,
        )

    def report(self, split: SplitName, faults: Iterable[Fault]) -> None:
        """Note unreadable files that a loader of this split met, each once.

        Raises:
            DataError: If there are now more than `max_corrupt`, or of the test items `max_corrupt_test`.
        """
        test = split == "test" or self._is_test_again(split)
        limit, key = (self.max_corrupt_test, "max_corrupt_test") if test else (self.max_corrupt, "max_corrupt")
        unreadable = self._unreadable["test" if test else "train"]
        for fault in faults:
            if fault.file in unreadable:
                continue
            unreadable[fault.file] = fault.reason
            sentence = f"{fault.file} is not readable ({fault.reason})"
            if len(unreadable) > limit:
                count = len(unreadable)
                raise DataError(
                    f"{sentence}; with it {count} {'file is' if count == 1 else 'files are'} unreadable, and "
                    f"data.{key} is {limit}",
                    f"raise data.{key} to go on with this run; or mend or remove all such files, which lmgraft "
                    "check-data finds, and train in another folder: they are other data then",
                )
            instead = "the next readable one is shown instead" if split == "train" else "a blank one is shown"
            instead = "it is left out" if self.leaves_out else instead
            warnings.warn(
                f"{sentence}; {instead} ({len(unreadable)} of at most {limit})", UnreadableItemWarning, stacklevel=2
            )

    def _is_test_again(self, split: SplitName) -> bool:
        """Whether this split is the test items, which choose the epoch."""
        return split == "val" and self.selection == "test"


def check_batch(batch: Any, name: str, size: int | None = None) -> None:
    """Refuse a batch without what every batch has.

    Args:
        name: Of the data set, for the error.
        size: How many items it must have.

    Raises:
        DataError: If it has no index or no group, or they are not one number an item.
    """
    remedy = "a batch is a NamedTuple of tensors; where items are independent, the group of each is its own index"
    for field in ("index", "group"):
        values = getattr(batch, field, None)
        if not isinstance(values, Tensor):
            raise DataError(f"batches of {name} have no `{field}`", remedy)
        if (
            values.dim() != 1
            or values.is_floating_point()
            or len(values) != (len(batch.index) if size is None else size)
        ):
            raise DataError(f"batches of {name}: `{field}` is {values.dtype} {tuple(values.shape)}", remedy)


def on_device(batch: Any, device: Any) -> Any:
    """A batch with all its tensors on a device."""
    return batch._replace(**{name: value.to(device) for name, value in batch._asdict().items() if hasattr(value, "to")})


def at_least_one(**values: int) -> None:
    """Refuse counts below one.

    Raises:
        DataError: If there is one; it names the key.
    """
    for key, value in values.items():
        if value < 1:
            raise DataError(f"data.{key} must be at least 1, got {value}")
