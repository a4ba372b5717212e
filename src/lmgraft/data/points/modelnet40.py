"""ModelNet40 (Wu et al., arXiv 1406.5670) as `modelnet40_normal_resampled`: a text file of 10,000 points a shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lmgraft.data.files import identity_of, stamp_of
from lmgraft.data.points.meshes import Array, UnreadableCloudError
from lmgraft.data.points.point_data import PointData, Source
from lmgraft.errors import DataError, first_line


class ModelNet40(PointData):
    """ModelNet40 below `modelnet40_normal_resampled`; normals are left out, clouds are scaled into the unit sphere.

    Files are read once, in minutes; what is kept of them lies in lmgraft's cache as .npz, and no pickles are read.

    Args:
        root: The folder.
        options: See `PointData`.
    """

    name = "modelnet40"

    def __init__(self, root: str = "modelnet40_normal_resampled", **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root).expanduser()

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._lines("modelnet40_shape_names.txt"))

    def _lines(self, name: str) -> list[str]:
        try:
            lines = [line.strip() for line in (self.root / name).read_text().splitlines()]
        except OSError as error:
            raise DataError(
                f"{self.root / name} cannot be read ({error.strerror})", "data.root is modelnet40_normal_resampled"
            ) from None
        return [line for line in lines if line]

    def find(self) -> dict[str, Source]:
        return {split: self._source(split) for split in ("train", "test")}

    def _source(self, split: str) -> Source:
        ids = self._lines(f"modelnet40_{split}.txt")
        numbers = {name: number for number, name in enumerate(self.class_names)}
        kinds = [shape.rpartition("_")[0] for shape in ids]
        strange = [shape for shape, kind in zip(ids, kinds, strict=True) if kind not in numbers]
        if strange:
            raise DataError(
                f"modelnet40_{split}.txt names {strange[0]}, which is of no class of modelnet40_shape_names.txt"
                + (f", and {len(strange) - 1} more" if len(strange) > 1 else ""),
                "fetch the data set again",
            )
        files = [self.root / kind / f"{shape}.txt" for shape, kind in zip(ids, kinds, strict=True)]
        return Source(
            labels=np.array([numbers[kind] for kind in kinds], np.int64),
            load=lambda i: _read(files[i]),
            names=[str(file.relative_to(self.root)) for file in files],
            identity={"name": self.name, "files": identity_of(files, self.root)},
            stamp=stamp_of(files),
        )


def _read(file: Path) -> Array:
    try:
        return np.loadtxt(file, np.float32, delimiter=",", usecols=(0, 1, 2), ndmin=2)
    except OSError as error:
        raise UnreadableCloudError(error.strerror or "it cannot be read") from None
    except (ValueError, IndexError) as error:
        raise UnreadableCloudError(first_line(error)) from None
