"""What all data sets of point clouds share: sources of clouds become splits, held in memory."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from lmgraft import records
from lmgraft.data.base import Data, SplitName
from lmgraft.data.check import Findings, Grid, ShowProgress
from lmgraft.data.files import as_names, files_below, find_loose
from lmgraft.data.holdout import hold_out
from lmgraft.data.labelled import LabelledData
from lmgraft.data.points.cloud_set import CloudSet, Shown
from lmgraft.data.points.files import ENDINGS, read_cloud
from lmgraft.data.points.meshes import Array
from lmgraft.data.points.table import CloudTable, Ordering, order_clouds, ordered_table
from lmgraft.errors import DataError

_MOST_WORKERS = 8
VOTE_SEED = 0  # of a test cloud's parts: the same in every run


@dataclass(frozen=True, kw_only=True)
class Source:
    """The clouds of one split as they lie somewhere."""

    labels: npt.NDArray[np.int64]
    load: Callable[[int], Array]
    """Gives the points (n, C) of a cloud; raises UnreadableCloudError."""
    names: Sequence[str]
    """Where each cloud lies, for messages; the same wherever the set is."""
    identity: Mapping[str, Any]
    """What names its contents, as plain data."""
    stamp: str = ""
    """What changes with the files' times: then they are read again."""
    groups: npt.NDArray[np.int64] | None = None
    """Which clouds belong together; None: each by itself."""


class PointData(LabelledData):
    """Point clouds: class_path names the data set, a subclass of this.

    Args:
        batch_size: Training clouds a step (and a process).
        eval_batch_size: Clouds a step in validation and test.
        val_size: Training clouds held out to choose the epoch by, a share (below 1) or a count, where the set has none
            of its own. 0: the test clouds choose it, as in the paper.
        max_corrupt: Unreadable clouds, in training and validation, above which a run stops.
        max_corrupt_test: Unreadable test clouds above which a run stops.
        num_workers: Loader processes; clouds lie in memory, so that none is needed.
        options: See `Shown`.
    """

    things: ClassVar[str] = "clouds"
    endings: ClassVar[tuple[str, ...]] = ENDINGS
    packages: ClassVar[tuple[str, ...]] = ("trimesh", "h5py")
    report_class_mean: ClassVar[bool] = True
    normalise: bool = True
    """Whether clouds are centred and scaled into the unit sphere."""

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        val_size: int | float = 0,
        max_corrupt: int = 0,
        max_corrupt_test: int = 0,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers)
        if val_size < 0:
            raise DataError(f"data.val_size={val_size} must not be negative")
        self.shown = Shown(**options)
        self.val_size, self.max_corrupt, self.max_corrupt_test = val_size, max_corrupt, max_corrupt_test
        self._sources: dict[str, Source] = {}
        self._tables: dict[str, CloudTable] = {}

    @abstractmethod
    def find(self) -> dict[str, Source]:
        """What there is of "train", "val" and "test"; train and test at least.

        Raises:
            DataError: If something is missing or does not agree.
        """

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.shown.points, 3)

    def model_arguments(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    @property
    def ordering(self) -> Ordering:
        """What is done to each cloud before any draw."""
        return Ordering(
            pool=self.shown.kept, normalise=self.normalise, skip_near_origin=self.shown.skip_near_origin
        )  # fmt: skip

    def setup(self, stage: str | None = None) -> None:
        if self._sets:
            return
        sources = self.find()
        for split, source in sources.items():
            wrong = (source.labels < 0) | (source.labels >= self.num_classes)
            if wrong.any():
                i = int(np.flatnonzero(wrong)[0])
                raise DataError(
                    f"{source.names[i]}: label {source.labels[i]} with {self.num_classes} classes, and "
                    f"{int(wrong.sum()) - 1:,} more in {split}",
                    "labels count from 0",
                )
        index = {split: np.arange(len(source.labels)) for split, source in sources.items()}
        if "val" not in sources and self.val_size:
            train = sources["train"]
            names, sizes = as_names(list(train.names)), {"val": self.val_size}
            index |= hold_out(names, train.labels, sizes, self.class_names, self.name, self.things)
            sources["val"] = train
        self.fill_a_batch(len(index["train"]))
        self._sources = sources
        for split, source in sources.items():
            self._tables[split] = (
                self._tables["train"] if split == "val" and source is sources["train"] else self._table(source)
            )
        self.selection: Literal["val", "test", "last"] = "val" if "val" in sources else "test"
        for split, which in index.items():
            draws: dict[str, Any] = {"train": {"draws": "train", "seed": self.seed}}.get(split, {})
            if split == "test" and self.shown.votes > 1:
                draws = {"draws": "votes", "seed": VOTE_SEED}
                self.remark(f"test figures are of {self.shown.votes} votes a cloud; the paper's are of one")
            self._sets[split] = self._clouds(split, which, **draws)
        self._sets.setdefault("val", self._clouds("test", index["test"]))

    def _table(self, source: Source) -> CloudTable:
        identity = {**source.identity, "stamp": source.stamp}
        workers = min(_MOST_WORKERS, records.usable_cpus())
        return ordered_table(len(source.labels), source.load, self.ordering, identity, workers)

    def _clouds(self, split: str, index: npt.NDArray[np.int64], **draws: Any) -> CloudSet:
        source = self._sources[split]
        return CloudSet(
            self._tables[split], index, source.labels, source.names, self.shown, groups=source.groups, **draws
        )  # fmt: skip

    def _of(self, split: str) -> CloudSet:
        clouds = self._sets[split]
        assert isinstance(clouds, CloudSet)
        return clouds

    def still(self, name: SplitName) -> CloudSet:
        split = "test" if self._is_test_again(name) else name
        clouds = self._clouds(split, self._sets[name].indices.numpy())
        clouds.replaces = name == "train"
        return clouds

    def fingerprint(self) -> dict[str, Any]:
        """What names the contents of all splits, and how many clouds they have."""
        return {
            "name": self.name,
            "contents": {split: dict(source.identity) for split, source in self._sources.items()},
            "sizes": {split: len(clouds) for split, clouds in self._sets.items()},
            "classes": list(self.class_names),
            "selection": self.selection,
        }

    def transform_record(self) -> dict[str, Any]:
        shown = self.shown
        preprocess = vars(self.ordering) | {"points": shown.points, "votes": shown.votes}
        return {"preprocess": preprocess, "scale": list(shown.scale), "shift": shown.shift, "turn": shown.turn}

    def check(self, workers: int, progress: ShowProgress, near: bool = False) -> Findings:
        """Every cloud read, unreadable ones counted, and how many points and clouds of each class there are."""
        findings = Data.check(self, workers, progress, near)
        splits = [split for split in ("train", "val", "test") if not (split == "val" and self._is_test_again("val"))]
        counts = {split: Counter(self._of(split).labels.tolist()) for split in splits}
        rows = [(name, *(f"{counts[s][label]:,}" for s in splits)) for label, name in enumerate(self.class_names)]
        findings.grids.append(Grid(("class", *splits), rows))
        empty = [name for label, name in enumerate(self.class_names) if not counts["train"][label]]
        if empty:
            findings.problems.append(f"no training cloud is of {', '.join(empty)}")
        for split in splits:
            sizes = self._tables[split].sizes[self._of(split).indices.numpy()]
            few = int(((sizes > 0) & (sizes < self.shown.points)).sum())
            if few:
                findings.remarks.append(
                    f"{few:,} clouds of {split} have fewer than data.points={self.shown.points} points, the least "
                    f"{sizes[sizes > 0].min()}; some of their points come again"
                )
        return findings

    def open(self, sources: Sequence[str]) -> CloudSet:
        paths = find_loose(sources, partial(files_below, endings=ENDINGS), f"clouds ({', '.join(ENDINGS)})")

        def load(i: int) -> Array:
            return read_cloud(paths[i], 2 * self.shown.kept)

        points, reasons, sizes = order_clouds(range(len(paths)), load, self.ordering)
        bad = [f"{path} cannot be read ({why})" for path, why in zip(paths, reasons.tolist(), strict=True) if why]
        if bad:
            raise DataError(bad[0] + (f", and {len(bad) - 1} more" if len(bad) > 1 else ""), "leave it out, or mend it")
        nothing = np.zeros(len(paths), np.int64)
        return CloudSet(
            CloudTable(points, {}, sizes), np.arange(len(paths)), nothing, [str(path) for path in paths], self.shown
        )
