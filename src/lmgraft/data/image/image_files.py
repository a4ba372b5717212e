"""Images in files: a folder of one's own, ImageNet, tars, a table of labels, or another library's data set."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, Literal

import timm
from PIL import Image
from torch import Tensor

from lmgraft import records
from lmgraft.data.base import SplitName, at_least_one
from lmgraft.data.check import Findings, ShowProgress
from lmgraft.data.image.checks import check_sizes
from lmgraft.data.image.classes import ClassList, ClassMap, known_classes
from lmgraft.data.image.file_set import ImageFileSet, reason
from lmgraft.data.image.findings import check_files
from lmgraft.data.image.images import ImageData
from lmgraft.data.image.layouts import Layout
from lmgraft.data.image.splits import Splits, make_splits
from lmgraft.data.image.tables import UNREADABLE, decode
from lmgraft.data.image.transforms import Augment, Preprocess, evaluation_transform, statistics, training_transform
from lmgraft.errors import DataError

_MOST_WORKERS = 8


class RawFiles:
    """The images of an `ImageFileSet` before any transform."""

    def __init__(self, images: ImageFileSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        table, source = self.images.table, int(self.images.indices[index])
        try:
            return decode(table.files, source, self.images.preprocess.mode), int(self.images.labels[index])
        except UNREADABLE as error:
            raise DataError(
                f"{table.place(source)} is not readable as an image ({reason(error)})",
                "lmgraft check-data finds all such",
            ) from None


class ImageFiles(ImageData):
    """Images in files: folders of class folders, tars, a CSV table, or a data set that timm reads.

    A folder with train and val, or train and test, is taken as it is, with val as the test images if there is no
    test. From a bare folder of class folders, test and validation images are held out by a hash of their path.

    Args:
        root: The folder of the images, or a .tar file.
        dataset: Another kind of data set, as timm names it: hfds/NAME, wds/, torch/NAME.
        csv: A table with the columns path, label and perhaps split; paths are relative to root, or to the table.
        train_split, val_split, test_split: Names of the splits (folders, tars, patterns of shards); by default
            train; val, valid or validation; test.
        input_key, target_key: Columns of a Hugging Face data set.
        classes: Which classes there must be: imagenet, how many, their names in order, or a text file of them.
        class_map: Class folder -> number, or a text file with a class folder a line; other folders are left out.
        val_size: Training images held out to choose the best epoch by, a share (below 1) or a count; not used where
            there is a val beside a test split. 0: the test images choose the epoch, as in the paper.
        test_size: The same for the test images, where the data set has none of its own.
        img_size: Height and width of the model's input.
        in_chans: 3 for colour, 1 for grey.
        interpolation: How images are resized.
        crop_pct: Share of the resized image that the central crop of evaluation keeps.
        mean, std: Of the channels in [0, 1]; ImageNet's by default.
        augment: Random changes of training images.
        repeats: Repeated augmentation: how often an image comes in one epoch; DeiT has 3.
        max_corrupt: Unreadable training and validation files above which a run stops.
        max_corrupt_test: Unreadable test files above which a run stops; a blank image stands for each.
        batch_size: Training images a step (and a process).
        eval_batch_size: Images a step in validation and test.
        num_workers: Loader processes; by default as many as there are CPUs, at most 8.
    """

    name = "image_files"

    def __init__(
        self,
        *,
        root: str | None = None,
        dataset: str = "",
        csv: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        input_key: str = "image",
        target_key: str = "label",
        classes: ClassList = None,
        class_map: ClassMap = None,
        val_size: int | float = 0.1,
        test_size: int | float = 0.1,
        img_size: int | tuple[int, int] = 224,
        in_chans: Literal[1, 3] = 3,
        interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic",
        crop_pct: float = 0.875,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        augment: Augment = Augment(),  # noqa: B008  (frozen)
        repeats: int = 1,
        max_corrupt: int = 10,
        max_corrupt_test: int = 0,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int | None = None,
    ) -> None:
        workers = min(_MOST_WORKERS, records.usable_cpus()) if num_workers is None else num_workers
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=workers)
        at_least_one(repeats=repeats)
        check_sizes(val_size=val_size, test_size=test_size)
        self.layout = Layout(
            root=root, dataset=dataset, csv=csv, train_split=train_split, val_split=val_split, test_split=test_split,
            input_key=input_key, target_key=target_key,
        )  # fmt: skip
        self.root, self.classes, self.class_map = root, classes, class_map
        self.val_size, self.test_size = val_size, test_size
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.in_chans, self.repeats = in_chans, repeats
        self.max_corrupt, self.max_corrupt_test = max_corrupt, max_corrupt_test
        usual_mean, usual_std = statistics(in_chans)
        self.mean, self.std = tuple(mean or usual_mean), tuple(std or usual_std)
        for key, values in {"mean": self.mean, "std": self.std}.items():
            if len(values) != in_chans:
                raise DataError(f"data.{key} has {len(values)} numbers for data.in_chans={in_chans}", "one a channel")
        self.preprocess = Preprocess(
            img_size=self.img_size, in_chans=in_chans, interpolation=interpolation, crop_pct=crop_pct,
            mean=self.mean, std=self.std,
        )  # fmt: skip
        self.augment = augment
        self._train_transform = training_transform(self.preprocess, augment)
        self._eval_transform = evaluation_transform(self.preprocess)
        self._splits: Splits | None = None

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Looks at the files where the options do not say."""
        known = known_classes(self.classes, self.class_map, self.root) if self._splits is None else None
        return self.splits().class_names if known is None else known

    def splits(self) -> Splits:
        """Where the images lie and which are held out; looks at the files once.

        Raises:
            DataError: If something is missing or does not agree.
        """
        if self._splits is None:
            self._splits = make_splits(
                self.layout,
                self.classes,
                self.class_map,
                val_size=self.val_size,
                test_size=self.test_size,
                max_empty=self.max_corrupt,
                max_empty_test=self.max_corrupt_test,
            )
            self.selection = self._splits.selection
            for sentence in self._splits.notices:
                _say_once(f"note: {sentence}\n")
        return self._splits

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        splits = self.splits()
        size = len(splits.index["train"])
        if size < self.batch_size:
            raise DataError(
                f"data.batch_size={self.batch_size} is more than the {size:,} training images",
                "make it smaller: an incomplete batch is dropped",
            )
        for split in splits.tables:
            self._sets[split] = self._images(split, augmented=split == "train")

    def _images(self, split: str, augmented: bool) -> ImageFileSet:
        splits = self.splits()
        return ImageFileSet(
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
        return {"preprocess": asdict(self.preprocess), "augment": asdict(self.augment), "timm": timm.__version__}

    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and labels of all files as digests, wherever they lie; contents are not read."""
        splits = self.splits()
        return {
            "name": self.name,
            "dataset": self.layout.dataset or ("csv" if self.layout.csv else "files"),
            "sha256": {split: table.digest() for split, table in splits.tables.items()},
            "sizes": {split: len(index) for split, index in splits.index.items()},
            "classes": list(splits.class_names),
            "selection": splits.selection,
        }

    def check(self, workers: int, progress: ShowProgress) -> Findings:
        return check_files(self.layout, self.classes, self.class_map, workers, progress)

    def recall(self, record: Mapping[str, Any]) -> None:
        self.classes = record.get("categories", {}).get("class", self.classes)

    def raw_test(self) -> RawFiles:
        test = self._sets["test"]
        assert isinstance(test, ImageFileSet)
        return RawFiles(test)

    def prepare(self, image: Image.Image) -> Tensor:
        mode = self.preprocess.mode
        return self._eval_transform(image if image.mode == mode else image.convert(mode))


@cache
def _say_once(text: str) -> None:
    sys.stderr.write(text)  # a process makes a recipe's data several times
