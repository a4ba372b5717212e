"""A test as far as it has come, so that one which is interrupted goes on where it stopped.

<run>/test_so_far.KEY.npz  the columns of the batches that are done, written now and then and deleted at the end

KEY says what the columns are made of. Only tests of minutes write anything, such as those that score millions of pairs.
Must not know what a recipe is, or what the columns mean.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer

from lmgraft.data.base import Data
from lmgraft.errors import RunError
from lmgraft.tasks.base import Task
from lmgraft.tasks.items import Items, joined
from lmgraft.training.items import read_arrays, write_arrays

_PREFIX = "test_so_far"
_COUNT, _FAULTS = "batches", "unreadable"  # beside the columns


class TestSoFar(Callback):
    """Writes what a test has scored so far, and lets the next one of the same go on from there.

    A folder that cannot be written in costs the test nothing but this.

    Args:
        folder: The run's.
        key: What the columns are made of (weights, items, settings), as a part of a file's name; asked for when there
            is something to read or to write, as it may take seconds.
        task: Scores them.
        data: Whose test items are scored.
        every: Seconds between two writings, and before the first.
    """

    __test__ = False  # of pytest

    def __init__(self, folder: Path, key: Callable[[], str], task: Task, data: Data, every: float = 60.0) -> None:
        self.folder, self.task, self.data, self.every = folder, task, data, every
        self._key = key
        self._path = self._file(key()) if any(folder.glob(f"{_PREFIX}.*.npz")) else None
        self._before: Items = {}
        self._last = 0.0

    def _file(self, key: str) -> Path:
        return self.folder / f"{_PREFIX}.{key}.npz"

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last, self.data.tested = time.monotonic(), 0
        if self._path is None or not self._path.exists():
            return
        try:
            kept = read_arrays(self._path)
        except RunError:  # damaged: it is made again
            return
        self.data.tested = int(kept.pop(_COUNT))
        faults = json.loads(str(kept.pop(_FAULTS)))
        if faults:
            self.data.load_state_dict(faults)
        self._before = kept

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if time.monotonic() - self._last < self.every:
            return
        self._path = self._path or self._file(self._key())
        state = {
            _COUNT: np.asarray(self.data.tested + batch_idx + 1),
            _FAULTS: np.asarray(json.dumps(self.data.state_dict())),
        }
        try:
            write_arrays(self._path, joined([*self._kept(), *self.task.scored_batches]) | state)
        except OSError:
            self.every = float("inf")
        self._last = time.monotonic()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Comes before the task's own, which counts all parts."""
        self.task.scored_batches[:0] = self._kept()
        self.data.tested = 0

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _kept(self) -> list[Items]:
        return [self._before] if self._before else []
