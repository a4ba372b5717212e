"""What a model made of each test item, kept beside a run's result.

<run>/test_items.npz         a row for each item of the split: see `lmgraft.tasks.items`
<run>/test_items.UNIT.npz    the same for metrics that count other items, such as the images of captions

Statistics over seeds and items, and figures by category, need more than a mean. Which columns there are, a task says.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmgraft import records
from lmgraft.errors import RunError
from lmgraft.tasks.items import Items, by_unit

FILE = "test_items.npz"


def _file(run_dir: Path, unit: str) -> Path:
    return run_dir / (f"test_items.{unit}.npz" if unit else FILE)


def write_items(run_dir: Path, items: Items) -> None:
    """Write the columns of all test items."""
    for unit, columns in by_unit(items).items():
        write_arrays(_file(run_dir, unit), columns)


def read_items(run_dir: Path) -> Items | None:
    """The columns of all test items; None where a run has kept none (of an older version).

    Raises:
        RunError: If a file is cut short or holds anything but plain arrays of equal length.
    """
    if not (run_dir / FILE).exists():
        return None
    items: Items = {}
    for path in sorted(run_dir.glob("test_items*.npz")):
        unit = path.name.removeprefix("test_items").removesuffix(".npz").lstrip(".")
        columns = read_arrays(path)
        if len({values.shape[:1] for values in columns.values()}) != 1:
            raise RunError(f"{path} holds arrays of unequal length", "delete it and result.json and run again")
        if not unit and "index" not in columns and {"label", "predicted"} <= columns.keys():
            columns = _upgraded(columns)
        items |= {f"{unit}/{name}" if unit else name: values for name, values in columns.items()}
    return items


def _upgraded(columns: Items) -> Items:
    """The columns that image classification had before there were other tasks."""
    index = np.arange(len(columns["label"]))
    upgraded: Items = {"index": index, "group": index, "by_class": columns["label"], **columns}
    upgraded["accuracy"] = (columns["label"] == columns["predicted"]).astype(np.float32)
    if "rank" in columns:
        upgraded["top5"] = (columns["rank"] < 5).astype(np.float32)
    return upgraded


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an .npz file, atomically."""
    with records.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an .npz file of plain arrays.

    Raises:
        RunError: If it is missing, cut short, or holds anything else.
    """
    try:
        # Not np.load(path): that leaves a damaged file open.
        with open(path, "rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if isinstance(arrays, np.ndarray):
                raise ValueError("it is one array, not several by name")
            with arrays:
                return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{path} is damaged ({error})", "delete it and the result beside it, and run again") from None
