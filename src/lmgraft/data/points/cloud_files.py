"""Clouds in files of one's own: class folders of point files and meshes, ShapeNet's folders among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmgraft.data.files import as_names, files_below, identity_of, is_system_folder, stamp_of
from lmgraft.data.holdout import hold_out
from lmgraft.data.points.files import ENDINGS, read_cloud
from lmgraft.data.points.point_data import PointData, Source
from lmgraft.errors import DataError


class CloudFiles(PointData):
    """Point files (PLY, PCD, XYZ, PTS, TXT, CSV, NPY, LAS) and meshes (OBJ, OFF, STL, PLY, glTF, VRML) in folders.

    The outermost folder is the class, however deep a file lies, so that ShapeNet's synset/model/models/*.obj are read
    too. A folder with train and test, or train and val, is taken as it is; from a bare one test clouds are held out by
    a hash of their names.

    Args:
        root: The folder.
        sampled: Points on the surface of a mesh before farthest point sampling; None: twice what is kept.
        normalise: Whether to centre clouds and scale them into the unit sphere.
        test_size: Share or count of the clouds that test, where there is no test folder.
        val_size: Share or count of the training clouds held out to choose the epoch by; 0: the test clouds choose it.
        max_corrupt: Unreadable files, in training and validation, above which a run stops.
        options: See `PointData`.
    """

    name = "cloud_files"

    def __init__(
        self,
        root: str = ".",
        *,
        sampled: int | None = None,
        normalise: bool = True,
        test_size: int | float = 0.2,
        val_size: int | float = 0.1,
        max_corrupt: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(val_size=val_size, max_corrupt=max_corrupt, **options)
        self.root, self.normalise, self.test_size = Path(root).expanduser(), normalise, test_size
        self.sampled = 2 * self.shown.kept if sampled is None else sampled
        self._classes: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The folders' names; looks at them."""
        if not self._classes:
            folders = self._folders()
            self._classes = tuple(sorted({path.name for folder in folders.values() for path in _classes_in(folder)}))
            if not self._classes:
                raise DataError(f"{self.root} holds no class folders", "put each cloud into a folder of its class")
        return self._classes

    def _folders(self) -> dict[str, Path]:
        """Split -> its folder; "train" alone where nothing is split."""
        if not self.root.is_dir():
            raise DataError(f"{self.root} is no folder", "check data.root")
        there = {split: self.root / split for split in ("train", "val", "test") if (self.root / split).is_dir()}
        if "train" in there and len(there) > 1:
            return there if "test" in there else {"train": there["train"], "test": there["val"]}
        return {"train": self.root}

    def find(self) -> dict[str, Source]:
        folders = self._folders()
        files = {split: _clouds_in(folder) for split, folder in folders.items()}
        if "test" not in files:
            everything = files["train"]
            names = as_names([str(path.relative_to(self.root)) for path in everything])
            labels, sizes = self._labels(everything), {"test": self.test_size}
            parts = hold_out(names, labels, sizes, self.class_names, str(self.root), self.things)
            if not len(parts["test"]):
                raise DataError(f"{self.root} has no test clouds", "make data.test_size more than 0")
            files = {split: [everything[i] for i in index] for split, index in parts.items()}
        return {split: self._source(paths) for split, paths in files.items()}

    def _labels(self, files: Sequence[Path]) -> npt.NDArray[np.int64]:
        numbers = {name: number for number, name in enumerate(self.class_names)}
        tops = list(self._folders().values())
        kinds = [next(f.relative_to(top).parts[0] for top in tops if f.is_relative_to(top)) for f in files]
        return np.array([numbers[kind] for kind in kinds], np.int64)

    def _source(self, files: Sequence[Path]) -> Source:
        sampled = self.sampled
        return Source(
            labels=self._labels(files),
            load=lambda i: read_cloud(files[i], sampled),
            names=[str(file.relative_to(self.root)) for file in files],
            identity={"name": self.name, "files": identity_of(files, self.root), "sampled": sampled},
            stamp=stamp_of(files),
        )


def _classes_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_system_folder(path.name))


def _clouds_in(folder: Path) -> list[Path]:
    files = [path for top in _classes_in(folder) for path in files_below(top, ENDINGS)]
    if not files:
        raise DataError(f"{folder} holds no clouds ({', '.join(ENDINGS)}) in class folders", "check data.root")
    return files
