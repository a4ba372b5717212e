"""Videos in files: tables of paths and labels, folders of class folders, or folders of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
import timm
import torch

from lmgraft import records
from lmgraft.data.base import SplitName
from lmgraft.data.check import Findings, ShowProgress
from lmgraft.data.files import as_names, find_loose
from lmgraft.data.image.splits import Splits, make_splits
from lmgraft.data.image.tables import FolderFiles, ImageTable
from lmgraft.data.labelled import LabelledData
from lmgraft.data.video.clip_set import ClipSet, Manner, group_numbers
from lmgraft.data.video.decoding import VIDEO_EXTENSIONS, require_library
from lmgraft.data.video.finding import clips_below, find_clips
from lmgraft.data.video.settings import Settings
from lmgraft.data.video.transforms import TrainTransform
from lmgraft.data.video.verify import check_videos

_MOST_WORKERS = 8


class VideoFiles(LabelledData):
    """Videos in files, decoded by PyAV, each shown as a clip of some of its frames.

    Args:
        batch_size: Training videos a step (and a process); each makes `augment.copies` clips.
        eval_batch_size: Videos a step in validation and test; each test video makes `views` clips.
        num_workers: Loader processes; by default as many as there are CPUs, at most 8.
        options: See `Settings`.
    """

    name = "video_files"
    things: ClassVar[str] = "clips"
    endings: ClassVar[tuple[str, ...]] = VIDEO_EXTENSIONS
    packages: ClassVar[tuple[str, ...]] = ("torchvision", "timm", "pillow", "av")

    def __init__(
        self, *, batch_size: int = 8, eval_batch_size: int = 8, num_workers: int | None = None, **options: Any
    ) -> None:
        workers = min(_MOST_WORKERS, records.usable_cpus()) if num_workers is None else num_workers
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=workers)
        self.settings = Settings(**options)
        self.max_corrupt, self.max_corrupt_test = self.settings.max_corrupt, self.settings.max_corrupt_test
        self.size = self.settings.size()
        self._still = Manner(self.size, self.settings.spacing, self.settings.order)
        self._train = replace(self._still, train=TrainTransform(self.size, self.settings.augment))
        self._splits: Splits | None = None

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Looks at the files where the options do not say."""
        classes = self.settings.classes
        if self._splits is None and isinstance(classes, list):
            return tuple(classes)
        if self._splits is None and isinstance(classes, int):
            return tuple(str(number) for number in range(classes))  # as many; a look at the files names them
        return self.splits().class_names

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.size.shape

    def model_arguments(self) -> dict[str, Any]:
        frame = (self.size.height, self.size.width)
        return {"num_classes": self.num_classes, "in_chans": 3, "img_size": frame, "num_frames": self.size.frames}

    def splits(self) -> Splits:
        """Where the videos lie and which are held out; looks at the files once.

        Raises:
            DataError: If something is missing or does not agree.
        """
        if self._splits is None:
            found = find_clips(self.settings)
            labels = {label for part in found.values() for label in part.labels}
            self._splits = make_splits(self.settings.splits(labels), found, self.things)
            self.selection = "last" if self.settings.choose == "last" else self._splits.selection
            for sentence in self._splits.notices:
                self.remark(sentence)
        return self._splits

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        require_library()
        splits = self.splits()
        self.fill_a_batch(len(splits.index["train"]))
        for split in splits.tables:
            self._sets[split] = self._clips(split, augmented=split == "train")

    def _clips(self, split: str, augmented: bool) -> ClipSet:
        splits = self.splits()
        table = splits.tables[split]
        still = replace(self._still, views=self.settings.views) if split == "test" else self._still
        return self.make_set(
            table,
            splits.index[split],
            self._train if augmented else still,
            group_numbers([table.name(n) for n in range(len(table))], self.settings.group),
            seed=self.seed,
            replace=split == "train",
            tries=self.max_corrupt + 1,
        )

    def make_set(self, table: ImageTable, index: Any, manner: Manner, groups: torch.Tensor, **options: Any) -> ClipSet:
        """The clips of a split; a subclass may have more to show."""
        return ClipSet(table, index, manner, groups, **options)

    def still(self, name: SplitName) -> ClipSet:
        return self._clips(name, augmented=False)

    def transform_record(self) -> dict[str, Any]:
        settings = self.settings
        preprocess = asdict(self.size) | {"spacing": settings.spacing, "order": settings.order}
        preprocess |= {"views": list(settings.views)}
        return {"preprocess": preprocess, "augment": asdict(settings.augment), "timm": timm.__version__}

    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and labels of all files as digests, wherever they lie; contents are not read."""
        splits = self.splits()
        return {
            "name": self.name,
            "dataset": "csv" if self.settings.csv else "files",
            "sha256": {split: table.digest() for split, table in splits.tables.items()},
            "sizes": {split: len(index) for split, index in splits.index.items()},
            "classes": list(splits.class_names),
            "selection": self.selection,
        }

    def recall(self, record: Mapping[str, Any]) -> None:
        classes = record.get("categories", {}).get("class", self.settings.classes)
        self.settings = replace(self.settings, classes=list(classes) if isinstance(classes, tuple) else classes)

    def check(self, workers: int, progress: ShowProgress, near: bool = False) -> Findings:
        self.prepare_data()
        require_library()
        return check_videos(self.settings, workers, progress)

    def open(self, sources: Sequence[str]) -> ClipSet:
        paths = find_loose(sources, clips_below, f"videos ({', '.join(VIDEO_EXTENSIONS)})")
        labels = np.zeros(len(paths), np.int64)
        files = FolderFiles("", as_names([str(path) for path in paths]))
        table = ImageTable(where="", names=files.names, labels=labels, sizes=labels, files=files)
        return ClipSet(table, np.arange(len(paths)), self._still, torch.arange(len(paths)))
