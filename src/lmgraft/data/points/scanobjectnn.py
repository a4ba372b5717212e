"""ScanObjectNN (Uy et al., arXiv 1908.04616): scanned objects of 15 classes, in HDF5 as it is distributed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lmgraft.data.points.point_data import PointData, Source
from lmgraft.errors import DataError
from lmgraft.versions import optional

_FILES = {
    "objects_background": ("main_split", "objectdataset"),
    "objects": ("main_split_nobg", "objectdataset"),
    "hardest": ("main_split", "objectdataset_augmentedrot_scale75"),
}


class ScanObjectNN(PointData):
    """ScanObjectNN below a folder with main_split and main_split_nobg; clouds are shown as they lie there.

    Args:
        root: The folder, h5_files of the distribution.
        variant: objects_background (OBJ_BG), objects (OBJ_ONLY), or hardest (PB_T50_RS).
        options: See `PointData`.
    """

    name = "scanobjectnn"
    normalise = False
    class_names = (
        "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink",
        "sofa", "toilet",
    )  # fmt: skip

    def __init__(
        self,
        root: str = "scanobjectnn",
        variant: Literal["objects_background", "objects", "hardest"] = "hardest",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.variant = Path(root).expanduser(), variant

    def find(self) -> dict[str, Source]:
        folder, name = _FILES[self.variant]
        return {split: self._source(self.root / folder / f"{part}_{name}.h5") for part, split in _SPLITS.items()}

    def _source(self, file: Path) -> Source:
        points, labels = read_h5(file)
        digest = hashlib.sha256(points.tobytes() + labels.tobytes()).hexdigest()
        return Source(
            labels=labels,
            load=points.__getitem__,
            names=[f"{file.name}[{i}]" for i in range(len(labels))],
            identity={"name": self.name, "variant": self.variant, "sha256": digest},
        )


_SPLITS = {"training": "train", "test": "test"}


def read_h5(file: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """`data` (N, n, 3 or more) and `label` (N,) of an HDF5 file.

    Raises:
        DataError: If it is missing, damaged, or holds something else.
    """
    h5py = optional("h5py", "points", "reading HDF5")
    if not file.is_file():
        raise DataError(f"{file} is not there", "data.root is the folder of main_split and main_split_nobg (h5_files)")
    try:
        with h5py.File(file, "r") as content:
            points, labels = np.asarray(content["data"], np.float32), np.asarray(content["label"])
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"{file} cannot be read as HDF5 with data and label ({error})", "fetch it again") from None
    if points.ndim != 3 or points.shape[2] < 3 or labels.size != len(points):
        raise DataError(f"{file}: data is {points.shape} and label {labels.shape}", "expected (N, n, 3) and (N,)")
    return np.ascontiguousarray(points[..., :3]), labels.ravel().astype(np.int64)
