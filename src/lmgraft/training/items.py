"""What a model made of each test item, kept beside a run's result: test_items.npz.

Statistics over seeds and items, and figures by class, need more than a mean. Which arrays there
are, a task says: its `test_step` returns them by name, one row an item.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lmgraft import records
from lmgraft.errors import RunError

FILE = "test_items.npz"


class KeepItems(Callback):
    """Collects what `test_step` returns; `arrays` joins it."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(outputs, Mapping):
            for name, values in outputs.items():
                self._parts.setdefault(name, []).append(values.detach().cpu())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Name -> (items, ...), in the order of the test set."""
        return {name: torch.cat(parts).numpy() for name, parts in self._parts.items()}


def write_items(run_dir: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write test_items.npz; nothing without arrays."""
    if arrays:
        write_arrays(run_dir / FILE, arrays)


def read_items(run_dir: Path) -> dict[str, NDArray[Any]] | None:
    """Read test_items.npz; None where a run has none (of an older version).

    Raises:
        RunError: If the file is cut short or holds anything but plain arrays of equal length.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    arrays = read_arrays(path)
    if len({values.shape[:1] for values in arrays.values()}) != 1:
        raise RunError(f"{path} holds arrays of unequal length", "delete it and result.json and run again")
    return arrays


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
