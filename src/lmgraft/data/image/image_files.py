"""Images in files: a folder of one's own, ImageNet, tars, a table of labels, or another library's data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import timm
from PIL import Image
from torch import Tensor

from lmgraft import records
from lmgraft.data.base import SplitName
from lmgraft.data.check import Findings, ShowProgress
from lmgraft.data.files import as_names
from lmgraft.data.image.classes import known_classes
from lmgraft.data.image.depth import percentile_limits, try_deep
from lmgraft.data.image.file_set import ImageFileSet, reason
from lmgraft.data.image.findings import check_files
from lmgraft.data.image.images import ImageData
from lmgraft.data.image.layouts import find_splits
from lmgraft.data.image.settings import Settings
from lmgraft.data.image.splits import Splits, make_splits
from lmgraft.data.image.tables import UNREADABLE, FolderFiles, Found, decode
from lmgraft.data.image.transforms import evaluation_transform, training_transform
from lmgraft.errors import DataError

_MOST_WORKERS = 8


class RawFiles:
    """The images of an `ImageFileSet` before any transform, deep ones in 8 bits behind their range."""

    def __init__(self, images: ImageFileSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        table, source = self.images.table, int(self.images.indices[index])
        try:
            image = decode(table.files, source, replace(self.images.preprocess.reader, eight_bits=True))
        except UNREADABLE as error:
            raise DataError(
                f"{table.place(source)} is not readable as an image ({reason(error)})",
                "lmgraft check-data finds all such",
            ) from None
        if isinstance(image, Tensor):
            raise DataError(
                f"{table.place(source)} has {len(image)} channels, which no picture shows",
                "this needs images of one channel or of three",
            )
        return image, int(self.images.labels[index])


class ImageFiles(ImageData):
    """Images in files: folders of class folders, tars, a CSV table, or a data set that timm reads.

    A folder with train and val, or train and test, is taken as it is, with val as the test images if there is no
    test. From a bare folder of class folders, test and validation images are held out by a hash of their path.

    Args:
        batch_size: Training images a step (and a process).
        eval_batch_size: Images a step in validation and test.
        num_workers: Loader processes; by default as many as there are CPUs, at most 8.
        options: See `Settings`.
    """

    name = "image_files"
    before: ClassVar[Mapping[str, Any]] = {"reading": "timm", "split_version": 1}
    file_set: ClassVar[type[ImageFileSet]] = ImageFileSet
    """What reads the images of a split."""

    def __init__(
        self, *, batch_size: int = 64, eval_batch_size: int = 256, num_workers: int | None = None, **options: Any
    ) -> None:
        workers = min(_MOST_WORKERS, records.usable_cpus()) if num_workers is None else num_workers
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=workers)
        self.settings = Settings(**options)
        self.repeats = self.settings.repeats
        self.max_corrupt, self.max_corrupt_test = self.settings.max_corrupt, self.settings.max_corrupt_test
        self.preprocess = self.settings.preprocess()
        self.img_size, self.in_chans = self.preprocess.img_size, self.preprocess.in_chans
        self.mean, self.std = self.preprocess.mean, self.preprocess.std
        self._train_transform = training_transform(self.preprocess, self.settings.augment)
        self._eval_transform = evaluation_transform(self.preprocess)
        self._splits: Splits | None = None

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Looks at the files where the options do not say."""
        known = None
        if self._splits is None:
            known = known_classes(self.settings.classes, self.settings.class_map, self.settings.root)
        return self.splits().class_names if known is None else known

    def find(self) -> dict[str, Found]:
        """The splits that the data set itself has: "train", and perhaps "val" and "test".

        Raises:
            DataError: If the files are not where the options say.
        """
        return find_splits(self.settings)

    def splits(self) -> Splits:
        """Where the images lie and which are held out; looks at the files once.

        Raises:
            DataError: If something is missing or does not agree.
        """
        if self._splits is None:
            self._splits = make_splits(self.settings, self.find())
            self.selection = self._splits.selection
            for sentence in self._splits.notices:
                self.remark(sentence)
        return self._splits

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        splits = self.splits()
        self.fill_a_batch(len(splits.index["train"]))
        if self.preprocess.range == "percentile":
            limits = percentile_limits(splits.tables["train"], splits.index["train"], self.preprocess.reader)
            self.preprocess = replace(self.preprocess, range=limits)
        try_deep(splits.tables["train"], splits.index["train"], self.preprocess, self._train_transform)
        for split in splits.tables:
            self._sets[split] = self._images(split, augmented=split == "train")

    def _images(self, split: str, augmented: bool) -> ImageFileSet:
        splits = self.splits()
        return self.file_set(
            splits.tables[split],
            splits.index[split],
            self._train_transform if augmented else self._eval_transform,
            self.preprocess,
            seed=self.seed,
            draws=augmented,
            replace=split == "train",
            tries=self.max_corrupt + 1,
        )

    def still(self, name: SplitName) -> ImageFileSet:
        return self._images(name, augmented=False)

    def transform_record(self) -> dict[str, Any]:
        augment = asdict(self.settings.augment)
        return {"preprocess": self.preprocess.record(), "augment": augment, "timm": timm.__version__}

    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and labels of all files as digests, wherever they lie; contents are not read.

        With `range: percentile` the limits that it gave, which a prediction takes from here.
        """
        splits = self.splits()
        limits = self.preprocess.range if self.settings.range == "percentile" else None
        return {
            "name": self.name,
            "dataset": self.settings.dataset or ("csv" if self.settings.csv else "files"),
            "sha256": {split: table.digest() for split, table in splits.tables.items()},
            "sizes": {split: len(index) for split, index in splits.index.items()},
            "classes": list(splits.class_names),
            "selection": splits.selection,
        } | ({} if limits is None else {"range": limits})

    def check(self, workers: int, progress: ShowProgress, near: bool = False) -> Findings:
        return check_files(self.settings, self.find, workers, progress, near)

    def recall(self, record: Mapping[str, Any]) -> None:
        classes = record.get("categories", {}).get("class", self.settings.classes)
        self.settings = replace(self.settings, classes=classes, class_map=None)
        if "range" in record.get("data", {}):
            self.preprocess = replace(self.preprocess, range=tuple(record["data"]["range"]))

    def raw_test(self) -> RawFiles:
        test = self._sets["test"]
        assert isinstance(test, ImageFileSet)
        return RawFiles(test)

    def prepare(self, image: Image.Image | Tensor) -> Tensor:
        mode = self.preprocess.reader.mode
        if isinstance(image, Image.Image) and mode is not None and image.mode != mode:
            image = image.convert(mode)
        return self._eval_transform(image)

    def load_file(self, path: Path) -> Tensor:
        files = FolderFiles(str(path.parent), as_names([path.name]))
        return self._eval_transform(decode(files, 0, self.preprocess.reader))
