"""What a model made of each test item, kept beside a run's result: test_items.npz.

Statistics over seeds and items, and figures by class, need more than a mean. Which arrays there
are, a task says: its `test_step` returns them by name, one row an item.
"""

from __future__ import annotations

import zipfile
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
    """Write test_items.npz, atomically; nothing without arrays."""
    if not arrays:
        return
    with records.atomic_path(run_dir / FILE) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_items(run_dir: Path) -> dict[str, NDArray[Any]] | None:
    """Read test_items.npz; None where a run has none (of an older version).

    Raises:
        RunError: If the file is cut short or holds anything but plain arrays of equal length.
    """
    path = run_dir / FILE
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is damaged ({error})", "delete it and result.json and run again") from None
    if len({len(values) for values in arrays.values()}) > 1:
        raise RunError(f"{path} holds arrays of unequal length", "delete it and result.json and run again")
    return arrays
